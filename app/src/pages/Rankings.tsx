// Orders of the methods, measure by measure: who is nearest to retraining, and how often that is not certain.
import { useMemo } from "react";
import { Panel } from "../parts/basics";
import { splitName } from "../format";
import type { ProblemView } from "../api-types";

interface Standing {
  label: string;
  ranks: (number | null)[];
  ties: number;
  mean: number | null;
}

/** Ranks by distance from retraining within each judged property; methods that the intervals do not separate from the best are counted. */
export function standings(problem: ProblemView): { columns: string[]; rows: Standing[] } {
  const judged = new Set(problem.verdicts.map((v) => `${v.metric}|${v.split}`));
  const places = problem.columns.map((c, i) => [c, i] as const).filter(([c]) => judged.has(`${c.metric}|${c.split}`));
  const methods = problem.rows.filter((r) => r.role === "unlearned");
  const rows = methods.map((r) => ({ label: r.label, ranks: [] as (number | null)[], ties: 0, mean: null as number | null }));
  for (const [, i] of places) {
    const gaps = methods.map((r) => (r.cells[i]?.gap === null || r.cells[i]?.gap === undefined ? null : Math.abs(r.cells[i].gap as number)));
    const known = gaps.filter((g): g is number => g !== null).sort((a, b) => a - b);
    const best = gaps.indexOf(known[0]);
    rows.forEach((row, m) => {
      const gap = gaps[m];
      row.ranks.push(gap === null ? null : 1 + known.filter((g) => g < gap).length);
      if (gap !== null && m !== best && overlap(methods[m].cells[i], methods[best]?.cells[i])) row.ties++;
    });
  }
  for (const row of rows) {
    const ranks = row.ranks.filter((r): r is number => r !== null);
    row.mean = ranks.length ? ranks.reduce((s, r) => s + r, 0) / ranks.length : null;
  }
  rows.sort((a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity));
  return { columns: places.map(([c]) => `${c.title}, ${splitName(c.split)}`), rows };
}

function overlap(a: ProblemView["rows"][0]["cells"][0], b: ProblemView["rows"][0]["cells"][0] | undefined): boolean {
  if (!a || !b || a.low === null || a.high === null || b.low === null || b.high === null) return false;
  return a.low <= b.high && b.low <= a.high;
}

export function Rankings(props: { problem: ProblemView }) {
  const { columns, rows } = useMemo(() => standings(props.problem), [props.problem]);
  if (rows.length < 2 || !columns.length) return null;
  return (
    <Panel
      title="Rankings by distance from retraining"
      caption="Rank 1 is nearest to the mean of the retrained models. A mean of ranks hides by how much, and whether it is certain: the last column counts the properties in which the method's interval over seeds overlaps that of the nearest."
    >
      <div className="scroll" tabIndex={0} role="region" aria-label="rankings, table">
        <table className="plain">
          <thead>
            <tr>
              <th scope="col">Method</th>
              {columns.map((c) => (
                <th key={c} scope="col" className="n">{c}</th>
              ))}
              <th scope="col" className="n">Mean rank</th>
              <th scope="col" className="n">Not separated</th>
            </tr>
          </thead>
          <tbody>
            {rows.map((r) => (
              <tr key={r.label}>
                <td>{r.label}</td>
                {r.ranks.map((rank, i) => (
                  <td key={columns[i]} className="n">{rank ?? "–"}</td>
                ))}
                <td className="n">{r.mean === null ? "–" : r.mean.toFixed(1)}</td>
                <td className="n">{r.ties} of {columns.length}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}
