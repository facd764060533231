import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import "./theme.css";
import type { Session } from "./api-types";
import { ask, session } from "./api";
import { SessionContext, runPath } from "./context";
import { Loading, Note } from "./parts/basics";
import { type Params, address, parse, useRoute } from "./route";
import { Attack } from "./pages/Attack";
import { Build } from "./pages/Build";
import { Contrast } from "./pages/Contrast";
import { Data } from "./pages/Data";
import { LedgerPage } from "./pages/Ledger";
import { Report } from "./pages/Report";
import { Screen } from "./pages/Screen";

const PAGES: { name: string; title: string; page: () => React.ReactNode; live?: boolean }[] = [
  { name: "build", title: "Build", page: Build, live: true },
  { name: "screen", title: "Screen", page: Screen },
  { name: "contrast", title: "Contrast", page: Contrast },
  { name: "attack", title: "Attack", page: Attack },
  { name: "data", title: "Data", page: Data },
  { name: "report", title: "Report", page: Report },
  { name: "ledger", title: "Ledger", page: LedgerPage },
];

function Theme() {
  const [theme, setTheme] = useState(() => localStorage.getItem("theme") ?? "system");
  useEffect(() => {
    const root = document.documentElement;
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  return (
    <select aria-label="colors" value={theme} onChange={(e) => setTheme(e.target.value)}>
      <option value="system">system colors</option>
      <option value="light">light</option>
      <option value="dark">dark</option>
    </select>
  );
}

/** What stays chosen when the reader turns to another page. */
function carried(params: Params): Params {
  const kept: Params = {};
  for (const key of ["run", "problem", "a", "b", "model"]) if (params[key]) kept[key] = params[key];
  return kept;
}

function App() {
  const [state, setState] = useState<{ session?: Session; error?: string }>({});
  const route = useRoute();
  useEffect(() => {
    session().then(
      (found) => setState({ session: found }),
      (e: Error) => setState({ error: e.message }),
    );
  }, []);
  const here = PAGES.find((p) => p.name === route.page) ?? PAGES[1];
  useEffect(() => {
    document.title = `${here.title} · expunge`;
  }, [here]);
  const shown = PAGES.filter((p) => !(p.live && state.session?.bundle) && (p.name !== "ledger" || state.session?.ledger || here.name === "ledger"));
  return (
    <SessionContext.Provider value={state.session ?? { version: "", folder: "", token: "", bundle: false, umap: false, ledger: false }}>
      <a className="skip" href="#content" onClick={(e) => { e.preventDefault(); document.querySelector<HTMLElement>("main")?.focus(); }}>
        to the content
      </a>
      <header className="bar">
        <a className="wordmark" href="#/screen">
          <svg viewBox="0 0 16 16" aria-hidden="true">
            <circle cx="8" cy="8" r="6" fill="none" stroke="var(--unlearned)" strokeWidth="2.5" strokeDasharray="26 12" />
          </svg>
          expunge
        </a>
        <nav className="pages" aria-label="pages">
          {shown.map((p) => (
            <a key={p.name} href={address(p.name, carried(route.params))} aria-current={p === here ? "page" : undefined}>
              {p.title}
            </a>
          ))}
        </nav>
        <div className="end">
          <span className="small muted">{state.session?.bundle ? "published" : state.session?.folder}</span>
          <Theme />
        </div>
      </header>
      <main id="content" tabIndex={-1} data-ready={state.session ? "yes" : undefined}>
        {state.error ? <Note wrong>{state.error}</Note> : state.session ? <here.page /> : <Loading />}
      </main>
    </SessionContext.Provider>
  );
}

// What the first view asks for is asked for before the view is there; it finds the answer under way.
{
  const { page, params } = parse(location.hash);
  const first = page === "screen" && params.scope === "all" ? ["/api/screen"] : ["/api/runs", ...(params.run ? [runPath(params.run)] : [])];
  for (const path of page === "build" || page === "ledger" ? [] : first) ask(path).catch(() => undefined);
}

createRoot(document.getElementById("root") as HTMLElement).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
