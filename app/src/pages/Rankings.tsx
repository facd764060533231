// Where the methods stand, by the rankings of `expunge compare`, with intervals.
import { Note, Panel, Wait } from "../parts/basics";
import { number, plural, splitName } from "../format";
import { query, useData } from "../api";
import { runPath } from "../context";
import type { ProblemView, RankingView, StandingLine } from "../api-types";

export function Rankings(props: { run: string; problem: ProblemView }) {
  const found = useData<RankingView>(query(runPath(props.run, "/ranking"), { problem: props.problem.name }));
  return (
    <Wait of={found} height={160}>
      {(ranking) => <Shown ranking={ranking} problem={props.problem} />}
    </Wait>
  );
}

function Shown(props: { ranking: RankingView; problem: ProblemView }) {
  const { ranking, problem } = props;
  const titles = new Map(problem.columns.map((c) => [`${c.metric}@${c.split}`, `${c.title}, ${splitName(c.split)}`]));
  const left = Object.entries(ranking.excluded);
  return (
    <Panel
      title="Rankings"
      caption={`On ${plural(ranking.measures.length, "measure")}: ${ranking.measures.map((m) => titles.get(m) ?? m.replace("@", ", ")).join("; ")}. ${ranking.resampled ? `Intervals are over resampled ${ranking.resampled}: where they overlap, the order is not certain.` : "Nothing could be resampled, so there are no intervals."}`}
    >
      {ranking.standings.length ? (
        <div className="scroll" tabIndex={0} role="region" aria-label="rankings, table">
          <table className="plain">
            <thead>
              <tr>
                <th scope="col">Method</th>
                <th scope="col" className="n" title="by the Borda count">Rank</th>
                <th scope="col">95 % interval of the rank</th>
                <th scope="col" className="n" title="share of the resamples in which it is alone on rank 1">Alone first</th>
                <th scope="col" className="n" title="of its comparisons on all measures; a tie is one half">Won</th>
                <th scope="col" className="n" title="best and worst rank over all orders with the fewest disagreements">Kemeny</th>
                <th scope="col" className="n" title="log-strength; mean 0 over methods">Plackett–Luce</th>
              </tr>
            </thead>
            <tbody>
              {ranking.standings.map((s) => (
                <tr key={s.label} className={s.reference ? "muted" : ""}>
                  <td>
                    {s.label}
                    {s.reference && <span className="small"> (yardstick)</span>}
                  </td>
                  <td className="n">{number(s.rank, 3)}</td>
                  <td>
                    <Span standing={s} of={ranking.standings.length} />
                  </td>
                  <td className="n">{s.first === null ? "–" : `${Math.round(100 * s.first)} %`}</td>
                  <td className="n">{Math.round(100 * s.share)} %</td>
                  <td className="n">{s.kemeny.low === s.kemeny.high ? s.kemeny.low : `${s.kemeny.low}–${s.kemeny.high}`}</td>
                  <td className="n">{s.strength === null ? "–" : number(s.strength, 2)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : (
        <Note>There is nothing to rank.</Note>
      )}
      {ranking.alike.length > 0 && <p className="small">Within the critical difference of one another: {ranking.alike.map((a) => a.join(", ")).join("; ")}.</p>}
      {ranking.notes.map((n) => (
        <p key={n} className="small muted">
          {n}
        </p>
      ))}
      {left.map(([label, reason]) => (
        <p key={label} className="small muted">
          Not ranked: {label}, {reason}.
        </p>
      ))}
    </Panel>
  );
}

function Span(props: { standing: StandingLine; of: number }) {
  const { standing, of } = props;
  if (!standing.interval) return <>–</>;
  const { low, high } = standing.interval;
  const x = (rank: number) => 6 + ((rank - 1) / Math.max(1, of - 1)) * 128;
  return (
    <span className="row" style={{ gap: "0.6rem" }}>
      <svg width={140} height={14} aria-hidden="true">
        <line x1={6} x2={134} y1={7} y2={7} stroke="var(--rule)" />
        <line x1={x(low)} x2={x(high)} y1={7} y2={7} stroke={standing.reference ? "var(--retrained)" : "var(--unlearned)"} strokeWidth={3} />
        <circle cx={x(standing.rank)} cy={7} r={4} fill={standing.reference ? "var(--retrained)" : "var(--unlearned)"} />
      </svg>
      {number(low, 3)}–{number(high, 3)}
    </span>
  );
}
