// Charts from the same Vega-Lite specifications as the report's. The library is fetched when the first chart is drawn.
import { useEffect, useRef, useState } from "react";
import { Note, useWidth } from "./basics";
import { png, resolved, save } from "./save";

export type Spec = Record<string, unknown>;
interface View {
  toSVG(): Promise<string>;
  finalize(): void;
}
type Embed = (place: HTMLElement, spec: Spec, options: Record<string, unknown>) => Promise<{ view: View }>;

let library: Promise<[Embed, Record<string, unknown>]> | undefined;

function load(): Promise<[Embed, Record<string, unknown>]> {
  library ??= Promise.all([
    new Promise<Embed>((done, fail) => {
      const script = document.createElement("script");
      script.src = "./assets/vega.js";
      script.onload = () => done((window as unknown as { vegaEmbed: Embed }).vegaEmbed);
      script.onerror = () => fail(new Error("the chart library cannot be loaded"));
      document.head.append(script);
    }),
    fetch("./assets/theme.json").then((r) => r.json()),
  ]);
  return library;
}

function fitted(spec: Spec, width: number): Spec {
  if (!spec.facet) return spec;
  const most = (spec.columns as number) ?? 4;
  const columns = width < 560 ? 1 : width < 820 ? Math.min(2, most) : most;
  const panel = Math.max(180, Math.floor((width - 62 - 34 * (columns - 1)) / columns));
  return { ...spec, columns, spec: { ...(spec.spec as Spec), width: panel } };
}

export function Vega(props: { spec: Spec; name: string }) {
  const [place, width] = useWidth();
  const drawn = useRef<HTMLDivElement>(null);
  const [view, setView] = useState<View>();
  const [error, setError] = useState("");
  useEffect(() => {
    if (!width || !drawn.current) return;
    let gone = false;
    let made: View | undefined;
    const box = document.createElement("div");
    drawn.current.replaceChildren(box);
    load()
      .then(async ([embed, config]) => {
        if (gone) return;
        box.style.width = `${width}px`;
        const legend = { ...(config.legend as Spec), columns: Math.max(1, Math.floor(width / 160)) };
        const found = await embed(box, fitted(props.spec, width), {
          config: { ...config, legend, aria: false },
          renderer: "svg",
          actions: false,
          ast: true, // the page forbids code made from strings
          defaultStyle: false,
          tooltip: { theme: "custom", disableDefaultStyle: true },
        });
        const svg = box.querySelector("svg");
        svg?.setAttribute("role", "img");
        svg?.setAttribute("aria-label", String(props.spec.description ?? props.name));
        for (const part of svg?.children ?? []) part.setAttribute("aria-hidden", "true"); // the label says it; marks have none
        made = found.view;
        if (gone) made.finalize();
        else setView(made);
      })
      .catch((e: Error) => gone || setError(e.message));
    return () => {
      gone = true;
      made?.finalize();
    };
  }, [props.spec, width]);
  const keep = async (kind: "svg" | "png") => {
    if (!view || !drawn.current) return;
    const svg = resolved(await view.toSVG());
    const size = drawn.current.querySelector("svg")?.getBoundingClientRect();
    const blob = kind === "svg" ? new Blob([svg], { type: "image/svg+xml" }) : await png(svg, size?.width ?? 800, size?.height ?? 400);
    save(blob, `${props.name}.${kind}`);
  };
  return (
    <div ref={place}>
      {error && <Note wrong>{error}</Note>}
      <div ref={drawn} className="vega" />
      <span className="row">
        <button type="button" className="plain" onClick={() => keep("svg")}>
          SVG
        </button>
        <button type="button" className="plain" onClick={() => keep("png")}>
          PNG
        </button>
      </span>
    </div>
  );
}
