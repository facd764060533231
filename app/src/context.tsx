// What every page shares: which run, which problem, which two models; all of it in the address.
import { type ReactNode, createContext, useContext } from "react";
import type { ProblemView, RunList, RunView, Session } from "./api-types";
import { type Loaded, useData } from "./api";
import { Choice, Empty, Loading, Note } from "./parts/basics";
import { change, useRoute } from "./route";

export const SessionContext = createContext<Session>({ version: "", folder: "", token: "", bundle: false, umap: false, ledger: false });
export const useSession = () => useContext(SessionContext);
export const runPath = (run: string, rest = "") => `/api/runs/${encodeURIComponent(run)}${rest}`;

export interface Chosen {
  run: string;
  view: RunView;
  problem: ProblemView;
  names: string[];
}

/** The run and the problem of the page, with the fields that choose them. */
export function WithRun(props: { children: (chosen: Chosen, picker: ReactNode) => ReactNode; title: string }) {
  const { params } = useRoute();
  const list = useData<RunList>("/api/runs");
  const known = list.data?.runs.filter((r) => r.state !== "running" || r.report).map((r) => r.name);
  const names = known ?? (params.run ? [params.run] : []); // a run that is named opens before the list is there
  const run = params.run && names.includes(params.run) ? params.run : (names[0] ?? "");
  const view = useData<RunView>(run ? runPath(run) : undefined);
  if (list.error) return <Note wrong>{list.error}</Note>;
  if (!list.data && !view.data) return <Loading />;
  if (!names.length) return <NoRuns />;
  const picker = (
    <Choice label="Run" value={run} options={names} onChange={(r) => change({ run: r, problem: "", a: "", b: "", model: "" }, false)} />
  );
  return <Opened {...{ view, run, names, picker }} wanted={params.run} children={props.children} title={props.title} />;
}

function Opened(props: {
  view: Loaded<RunView>;
  run: string;
  names: string[];
  wanted?: string;
  picker: ReactNode;
  title: string;
  children: (chosen: Chosen, picker: ReactNode) => ReactNode;
}) {
  const { params } = useRoute();
  const { view, run } = props;
  const missing = props.wanted && props.wanted !== run ? `There is no run '${props.wanted}' here; this is '${run}'.` : "";
  if (!view.data || view.data.name !== run)
    return (
      <>
        <h1>{props.title}</h1>
        <div className="context">{props.picker}</div>
        {view.error ? <Note wrong>{view.error}</Note> : <Loading />}
      </>
    );
  const problems = view.data.problems;
  if (!problems.length) return <Note wrong>Run '{run}' has no problem in its scores.</Note>;
  const problem = problems.find((p) => p.name === params.problem) ?? problems[0];
  const picker = (
    <>
      {props.picker}
      <Choice
        label="Problem"
        value={problem.name}
        options={problems.map((p) => p.name)}
        onChange={(name) => change({ problem: name, a: "", b: "", model: "", split: "" }, false)}
      />
    </>
  );
  return (
    <>
      {missing && <Note wrong>{missing}</Note>}
      {props.children({ run, view: view.data, problem, names: props.names }, picker)}
    </>
  );
}

export function NoRuns() {
  const { bundle } = useSession();
  return (
    <Empty title="No runs yet">
      <p>
        A run is what <code>expunge run STUDY</code> leaves behind: models, evidence, scores and a report.
      </p>
      {!bundle && (
        <p>
          Put a study together on the <a href="#/build">Build</a> page, or run <code>expunge demo</code> (about two minutes).
        </p>
      )}
    </Empty>
  );
}

/** The models of a problem by role, for choosing a sensible first pair. */
export function firstPair(problem: ProblemView): [string, string] {
  const role = new Map(problem.rows.map((r) => [r.label, r.role]));
  const of = (wanted: string) => problem.models.find((m) => role.get(m.slice(0, m.lastIndexOf("@"))) === wanted);
  const a = of("unlearned") ?? problem.models[0];
  const b = of("retrained") ?? of("target") ?? problem.models[1] ?? problem.models[0];
  return [a, b];
}

export const shownModel = (model: string) => model.replace(/@(\d+)$/, ", seed $1");
