// The report, what was not tested, how to get the same again, and everything as files.
import { Note, Panel } from "../parts/basics";
import { BUNDLE } from "../api";
import { type Chosen, WithRun } from "../context";
import { splitName } from "../format";

export function Report() {
  return <WithRun title="Report">{(chosen, picker) => <Shown chosen={chosen} picker={picker} />}</WithRun>;
}

const WHAT: Record<string, string> = {
  "report.html": "the report as one page, for readers and archives",
  "report.json": "the same as data",
  "scores.json": "every score with its interval, status and reason",
  "run.yaml": "the study as passed and as in effect",
  "jobs.json": "which finished job belongs to which row",
  "log.jsonl": "what happened when",
};

function Shown(props: { chosen: Chosen; picker: React.ReactNode }) {
  const { run, view, problem } = props.chosen;
  const at = (file: string) => `${BUNDLE ? "." : ""}/runs/${encodeURIComponent(run)}/${file}`;
  const { created, ...environment } = view.environment as Record<string, unknown>;
  const quiet = problem.rows.filter((r) => r.notes.length);
  return (
    <>
      <div className="title">
        <h1>Report</h1>
        <p>{problem.claim}</p>
      </div>
      <div className="context">{props.picker}</div>
      <div className="two">
        <Panel title="Files">
          {view.files.includes("report.html") ? (
            <p>
              <a className="button" href={at("report.html")} target="_blank" rel="noopener">
                Open the report
              </a>
            </p>
          ) : (
            <Note>This record has no report yet; expunge report {run} makes one.</Note>
          )}
          <table className="plain">
            <tbody>
              {view.files.map((f) => (
                <tr key={f}>
                  <td>
                    <a href={at(f)} download={f === "report.html" ? undefined : `${run}-${f}`}>
                      {f}
                    </a>
                  </td>
                  <td className="muted">{WHAT[f]}</td>
                </tr>
              ))}
            </tbody>
          </table>
          <p className="caption">Examples are exported as CSV or Parquet on the Contrast page; every figure has SVG and PNG beside it. The address of a view is all it takes to share it.</p>
        </Panel>
        <Panel title="Not tested" caption="Nothing here is implied by what was.">
          <table className="plain">
            <tbody>
              {view.untested.map((u) => (
                <tr key={String(u.title)}>
                  <td>{String(u.title)}</td>
                  <td className="muted">{String(u.why)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Panel>
      </div>
      {quiet.length > 0 && (
        <Panel title="What methods reported">
          <table className="plain">
            <tbody>
              {quiet.map((r) => (
                <tr key={r.label}>
                  <td>{r.label}</td>
                  <td className="muted">{r.notes.join("; ")}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Panel>
      )}
      <Panel title="How to get the same again">
        <pre className="record" tabIndex={0}>{view.command || "the command was not recorded"}</pre>
        <details>
          <summary>The study as passed</summary>
          <pre className="record" tabIndex={0}>{view.passed || "not recorded"}</pre>
        </details>
        <details>
          <summary>Environment</summary>
          <pre className="record" tabIndex={0}>{JSON.stringify(environment, null, 1)}</pre>
        </details>
        <p className="caption">
          {view.created && `Made ${view.created}. `}
          Examples: {Object.entries(problem.counts).map(([s, n]) => `${s === "train" ? "training rows" : splitName(s)} ${n.toLocaleString("en")}`).join(", ")}.
        </p>
      </Panel>
    </>
  );
}
