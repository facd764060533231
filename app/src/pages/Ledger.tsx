// The deletion ledger: requests, deadlines, certificates, and whether the log holds.
import { Empty, Loading, Note, Panel } from "../parts/basics";
import { useData } from "../api";
import { useSession } from "../context";
import { plural } from "../format";
import type { LedgerView } from "../api-types";

export function LedgerPage() {
  const { ledger } = useSession();
  const found = useData<LedgerView>(ledger ? "/api/ledger" : undefined, 10000);
  return (
    <>
      <div className="title">
        <h1>Ledger</h1>
        <p>Deletion requests and what became of them. No field names a person: subjects and records are keyed hashes.</p>
      </div>
      {!ledger || found.error ? (
        <Empty title="No ledger here">
          <p>{found.error || <>There is none in the folder that <code>expunge app --ledger</code> names (<code>ledger</code> where it names none); <code>expunge ledger init</code> makes one</>}.</p>
        </Empty>
      ) : (
        found.last ? <Shown data={found.last} /> : <Loading height={400} />
      )}
    </>
  );
}

function Shown(props: { data: LedgerView }) {
  const { data } = props;
  const time = (t: string | null) => (t === null ? "–" : t.replace("T", " ").replace(/(\.\d+)?(\+00:00|Z)$/, " UTC"));
  return (
    <>
      <dl className="facts">
        {Object.entries(data.counts).map(([state, n]) => (
          <div key={state}>
            <dt>{state}</dt>
            <dd>{n}</dd>
          </div>
        ))}
        <div>
          <dt>past their deadline</dt>
          <dd className={data.overdue ? "ne" : ""}>{data.overdue}</dd>
        </div>
      </dl>
      <Panel title="Log of certificates">
        <p>
          <b className={data.valid === null ? "un" : data.valid ? "eq" : "ne"}>{data.valid === null ? "not checked" : data.valid ? "holds" : "does not hold"}</b>: {data.verification}
        </p>
        <div className="scroll" style={{ maxHeight: 380 }} tabIndex={0} role="region" aria-label="certificates, table">
          <table className="plain">
            <thead>
              <tr>
                <th scope="col">Entry</th>
                <th scope="col">Kind</th>
                <th scope="col">Finished</th>
                <th scope="col" className="n">Rows forgotten</th>
                <th scope="col">Method, guarantee</th>
                <th scope="col">Verdict</th>
              </tr>
            </thead>
            <tbody>
              {data.certificates.map((c) => (
                <tr key={c.sequence}>
                  <td>{c.sequence}</td>
                  <td>{c.kind}</td>
                  <td>{time(text(c.body.finished_at) || null)}</td>
                  <td className="n">{of(c.body, "records")}</td>
                  <td>{[of(c.body, "method"), of(c.body, "guarantee")].filter(Boolean).join(", ")}</td>
                  <td>
                    {text(c.body.verdict)}
                    <details>
                      <summary>{summary(c.body)}</summary>
                      <pre className="record">{JSON.stringify(c.body, null, 1)}</pre>
                    </details>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Panel>
      <Panel title="Requests">
        {data.missing.requests && <Note wrong>{data.missing.requests}</Note>}
        <div className="scroll" style={{ maxHeight: 520 }} tabIndex={0} role="region" aria-label="requests, table">
          <table className="plain">
            <thead>
              <tr>
                <th scope="col">Request</th>
                <th scope="col">State</th>
                <th scope="col">Received</th>
                <th scope="col">Deadline</th>
                <th scope="col">Finished</th>
                <th scope="col">Reason</th>
              </tr>
            </thead>
            <tbody>
              {data.requests.map((r) => (
                <tr key={r.id}>
                  <td>
                    <code>{r.id.slice(0, 12)}…</code>
                  </td>
                  <td>
                    <span className={`badge ${r.state === "done" ? "finished" : r.state === "failed" || r.overdue ? "failed" : r.state === "running" ? "running" : ""}`}>{r.state}</span>
                    {r.explanation && <p className="small muted">{r.explanation}</p>}
                  </td>
                  <td>{time(r.received_at)}</td>
                  <td className={r.overdue ? "ne" : ""}>{time(r.deadline)}</td>
                  <td>{time(r.finished_at)}</td>
                  <td>{r.reason}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Panel>
    </>
  );
}

const text = (value: unknown) => (typeof value === "string" || typeof value === "number" ? String(value) : "");
const of = (body: Record<string, unknown>, key: string) => text((body.outcome as Record<string, unknown> | undefined)?.[key]);

function summary(body: Record<string, unknown>): string {
  const ids = body.request_ids;
  return Array.isArray(ids) ? `the whole entry, for ${plural(ids.length, "request")}` : "the whole entry";
}
