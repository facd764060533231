// Predictions of a classifier: rows are the true classes, columns the predicted ones.
import type { Matrix } from "../api-types";
import { number } from "../format";

export function MatrixView(props: { matrix: Matrix; color: string; name: string; lit?: string; onHover: (group: string | undefined) => void }) {
  const { classes, counts, confidence } = props.matrix;
  return (
    <table className="matrix" aria-label={`predictions of ${props.name}`}>
      <thead>
        <tr>
          <th scope="col"><span className="visually-hidden">true class</span></th>
          {classes.map((c) => (
            <th key={c} scope="col" title={c}>
              {c}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {classes.map((c, i) => {
          const sum = counts[i].reduce((s, n) => s + n, 0);
          return (
            <tr key={c} className={props.lit === c ? "lit" : ""} onMouseEnter={() => props.onHover(c)} onMouseLeave={() => props.onHover(undefined)}>
              <th scope="row" title={c}>
                {c}
              </th>
              {counts[i].map((n, j) => {
                const share = sum ? n / sum : 0;
                const sure = confidence?.[i][j];
                const hint = `${n} of ${sum} rows of ${c} called ${classes[j]}${sure === null || sure === undefined ? "" : `, mean confidence ${number(100 * sure, 3)} %`}`;
                // Two ranges, so that the number is readable on every shade: dark on pale, and the page's color on strong.
                const strength = share > 0.5 ? 86 + 14 * share : 8 + 76 * share;
                return (
                  <td
                    key={classes[j]}
                    title={hint}
                    style={{
                      background: n ? `color-mix(in srgb, ${props.color} ${strength}%, var(--paper))` : "var(--panel)",
                      color: strength > 55 ? "var(--paper)" : "var(--ink)",
                    }}
                  >
                    {n || ""}
                  </td>
                );
              })}
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}
