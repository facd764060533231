// What is to be forgotten, how hard it is, and what stays in the training data that says the same.
import { useState } from "react";
import { Choice, Note, Panel, Undefined, Wait } from "../parts/basics";
import { number, plural, splitName } from "../format";
import { BUNDLE, query, useData } from "../api";
import { type Chosen, WithRun, runPath } from "../context";
import { change, useRoute } from "../route";
import type { ForgetSet, ForgottenRow, Neighbor } from "../api-types";

const PAGE = 30;

export function Data() {
  return <WithRun title="Data">{(chosen, picker) => <Rows chosen={chosen} picker={picker} />}</WithRun>;
}

function Rows(props: { chosen: Chosen; picker: React.ReactNode }) {
  const { run, problem } = props.chosen;
  const { params } = useRoute();
  const [reveal, setReveal] = useState(false);
  const page = Number(params.page ?? 0) || 0;
  const sort = params.order ?? "";
  const path = query(runPath(run, "/forget-set"), { problem: problem.name, reveal, sort, offset: page * PAGE || undefined, limit: PAGE });
  const found = useData<ForgetSet>(path);
  return (
    <>
      <div className="title">
        <h1>Data</h1>
        <p>{problem.scope ? `To be forgotten: ${problem.scope}.` : ""} What resembles a forgotten row and stays in the training data keeps teaching the same.</p>
      </div>
      <div className="context">
        {props.picker}
        {!BUNDLE && <Choice
          label="Order"
          value={sort}
          options={[
            { value: "", label: "of the data" },
            { value: "difficulty", label: "hardest first" },
            { value: "memorized", label: "most memorized first" },
            { value: "similarity", label: "nearest to a kept row first" },
          ]}
          onChange={(v) => change({ order: v, page: "" })}
        />}
        {!BUNDLE && (
          <button type="button" aria-pressed={reveal} onClick={() => setReveal(!reveal)}>
            {reveal ? "Hide contents" : "Reveal contents"}
          </button>
        )}
      </div>
      <Panel title="Counts">
        <dl className="facts">
          {Object.entries(problem.counts).map(([split, n]) => (
            <div key={split}>
              <dt>{split === "train" ? "training rows" : splitName(split)}</dt>
              <dd>{n.toLocaleString("en")}</dd>
            </div>
          ))}
          {found.data && found.data.duplicates !== null && (
            <div>
              <dt>forget rows with a near-duplicate that is kept</dt>
              <dd className={found.data.duplicates ? "ne" : ""}>{found.data.duplicates}</dd>
            </div>
          )}
        </dl>
      </Panel>
      <Wait of={found} height={420}>
        {(data) => (
          <Panel
            title="Forget set"
            tools={
              <>
                <button type="button" disabled={page === 0} onClick={() => change({ page: String(page - 1) })}>
                  Previous
                </button>
                <span className="small muted">
                  {data.total ? `${page * PAGE + 1}–${Math.min(data.total, (page + 1) * PAGE)} of ${plural(data.total, "row")}` : ""}
                </span>
                <button type="button" disabled={BUNDLE || (page + 1) * PAGE >= data.total} onClick={() => change({ page: String(page + 1) })}>
                  Next
                </button>
              </>
            }
            caption="Difficulty: mean loss of the retrained models, who never saw the row. Memorized: what the target's loss is below that. Neighbors: cosine similarity of standardized inputs, or of word weights (tf-idf) for texts. Contents leave the server only when they are revealed."
          >
            {[...new Set(Object.values(data.missing))].map((reason) => (
              <Note key={reason}>
                {Object.entries(data.missing)
                  .filter(([, r]) => r === reason)
                  .map(([k]) => k)
                  .join(" and ")}
                : {reason}.
              </Note>
            ))}
            <div className="scroll" tabIndex={0} role="region" aria-label="forget set, table">
              <table className="plain" style={{ width: "100%" }}>
                <thead>
                  <tr>
                    <th scope="col">Row to forget</th>
                    <th scope="col">Content</th>
                    <th scope="col" className="n">Difficulty</th>
                    <th scope="col" className="n">Memorized</th>
                    <th scope="col">Nearest rows that are kept</th>
                  </tr>
                </thead>
                <tbody>
                  {data.rows.map((row) => (
                    <Row key={row.id} row={row} revealed={data.revealed} missing={data.missing} />
                  ))}
                </tbody>
              </table>
            </div>
          </Panel>
        )}
      </Wait>
    </>
  );
}

function Row(props: { row: ForgottenRow; revealed: boolean; missing: Record<string, string> }) {
  const { row, revealed, missing } = props;
  const amount = (v: number | null) => (v === null ? <Undefined reason={missing.difficulty ?? "the loss is not finite"} /> : number(v, 3));
  return (
    <tr>
      <td>
        {row.id}
        {row.group !== null && <p className="small muted">{row.group}</p>}
      </td>
      <td>
        <Content of={row} revealed={revealed} reason={missing.contents} />
      </td>
      <td className="n">{amount(row.difficulty)}</td>
      <td className="n">{amount(row.memorized)}</td>
      <td>
        {row.neighbors.length ? (
          <div className="row" style={{ alignItems: "start" }}>
            {row.neighbors.map((n) => (
              <span key={n.id} className="small neighbor" title={`${n.id}${n.group ? `, ${n.group}` : ""}`}>
                <Content of={n} revealed={revealed} reason={missing.contents} short />
                <span className={n.similarity >= 0.999 ? "ne" : "muted"}>
                  {n.similarity.toFixed(3)} {n.group !== row.group && n.group}
                </span>
              </span>
            ))}
          </div>
        ) : (
          <Undefined reason={missing.neighbors ?? "nothing is kept"} />
        )}
      </td>
    </tr>
  );
}

function Content(props: { of: ForgottenRow | Neighbor; revealed: boolean; reason?: string; short?: boolean }) {
  const { of } = props;
  if (of.image) return <span className="pictures"><img src={of.image} alt={`row ${of.id}`} /></span>;
  if (of.content) return <p style={{ whiteSpace: "pre-wrap", maxWidth: props.short ? "12rem" : "26rem", overflowWrap: "anywhere" }}>{props.short && of.content.length > 90 ? `${of.content.slice(0, 90)}…` : of.content}</p>;
  if (props.revealed) return <Undefined reason={props.reason ?? "this kind of row has no form that can be shown"} status="not shown" />;
  return <span className={props.short ? "redacted blank" : "redacted"} title="not revealed">hidden</span>;
}
