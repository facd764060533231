// What attacks asked and were answered; contents are fetched when they are revealed.
import { useState } from "react";
import { Choice, Note, Panel, Wait } from "../parts/basics";
import { number } from "../format";
import { BUNDLE, query, useData } from "../api";
import { runPath } from "../context";
import type { Transcripts } from "../api-types";

export function TranscriptsView(props: { run: string; problem: string; model: string; attacks: string[] }) {
  const [attack, setAttack] = useState("");
  const [reveal, setReveal] = useState(false);
  const chosen = props.attacks.includes(attack) ? attack : props.attacks[0];
  const path = chosen && !BUNDLE ? query(runPath(props.run, "/transcripts"), { problem: props.problem, model: props.model, attack: chosen, reveal, limit: 50 }) : undefined;
  const found = useData<Transcripts>(path);
  if (!chosen) return null;
  if (BUNDLE)
    return (
      <Panel title="Transcripts">
        <Note>What attacks asked and were answered is content, which is not published with these pages.</Note>
      </Panel>
    );
  return (
    <Panel
      title="Transcripts"
      tools={
        <>
          <Choice label="Attack" value={chosen} options={props.attacks} onChange={setAttack} />
          <button type="button" aria-pressed={reveal} onClick={() => setReveal(!reveal)}>
            {reveal ? "Hide contents" : "Reveal contents"}
          </button>
        </>
      }
      caption="Contents leave the server only when they are revealed."
    >
      <Wait of={found}>
        {(data) => (
          <div className="scroll" style={{ maxHeight: 420 }} tabIndex={0} role="region" aria-label="transcripts, table">
            <table className="plain">
              <thead>
                <tr>
                  <th scope="col">Row</th>
                  <th scope="col">Asked and answered</th>
                  <th scope="col">Scored</th>
                </tr>
              </thead>
              <tbody>
                {data.rows.map((row, i) => (
                  <tr key={i}>
                    <td>{row.id}</td>
                    <td>
                      {row.said
                        ? Object.entries(row.said).map(([k, v]) => (
                            <p key={k}>
                              <span className="muted small">{k}</span> {typeof v === "string" ? v : JSON.stringify(v)}
                            </p>
                          ))
                        : <span className="redacted">hidden</span>}
                    </td>
                    <td className="n">{Object.entries(row.numbers).map(([k, v]) => `${k} ${number(v, 3)}`).join(", ") || "–"}</td>
                  </tr>
                ))}
              </tbody>
            </table>
            {data.total > data.rows.length && <p className="caption">The first {data.rows.length} of {data.total}.</p>}
          </div>
        )}
      </Wait>
    </Panel>
  );
}
