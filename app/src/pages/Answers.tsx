// What two language models say to the same prompts, and how likely each finds every token of the true answer.
import { useState } from "react";
import { Loading, Note, Panel, Swatch, COLOR } from "../parts/basics";
import { number } from "../format";
import { BUNDLE, query, useData } from "../api";
import { runPath, shownModel } from "../context";
import type { Answer, Answers as AnswersData } from "../api-types";
import type { Pair } from "./Contrast";

const PAGE = 6;

export function Answers(props: { pair: Pair }) {
  const { pair } = props;
  const [reveal, setReveal] = useState(false);
  const [page, setPage] = useState(0);
  const path = query(runPath(pair.run, "/answers"), { ...pair, run: undefined, reveal, offset: page * PAGE || undefined, limit: PAGE });
  const found = useData<AnswersData>(path);
  const total = found.data?.total ?? 0;
  return (
    <Panel
      title="Answers"
      tools={
        <Pager {...{ reveal, setReveal, page, setPage, total }} size={PAGE} />
      }
      caption="Tokens of the true answer, colored by the model's log-probability: the paler, the more expected. What a model says itself stands below. Contents leave the server only when they are revealed."
    >
      {found.error && <Note wrong>{found.error}</Note>}
      {found.data ? (
        <div className="answers">
          {found.data.rows.map((row) => (
            <One key={row.id} row={row} pair={pair} revealed={found.data?.revealed ?? false} />
          ))}
        </div>
      ) : (
        !found.error && <Loading />
      )}
    </Panel>
  );
}

/** Reveals what is hidden, and turns the pages. */
export function Pager(props: { reveal: boolean; setReveal: (on: boolean) => void; page: number; setPage: (page: number) => void; total: number; size: number }) {
  const { reveal, page, total, size } = props;
  return (
    <>
      {!BUNDLE && (
        <button type="button" aria-pressed={reveal} onClick={() => props.setReveal(!reveal)}>
          {reveal ? "Hide contents" : "Reveal contents"}
        </button>
      )}
      <button type="button" disabled={page === 0} onClick={() => props.setPage(page - 1)}>
        Previous
      </button>
      <span className="small muted">{total ? `${page * size + 1}–${Math.min(total, (page + 1) * size)} of ${total}` : ""}</span>
      <button type="button" disabled={BUNDLE || (page + 1) * size >= total} onClick={() => props.setPage(page + 1)}>
        Next
      </button>
    </>
  );
}

function One(props: { row: Answer; pair: Pair; revealed: boolean }) {
  const { row, revealed } = props;
  return (
    <article className="answer" aria-label={row.id}>
      <div className="row small">
        <b>{row.id}</b>
        {row.group && <span className="muted">{row.group}</span>}
        {revealed && row.truth !== null && <span>true answer: {row.truth}</span>}
      </div>
      <div className="texts">
        {(["a", "b"] as const).map((side) => {
          const [said, logp, loss] = side === "a" ? [row.a, row.logp_a, row.loss_a] : [row.b, row.logp_b, row.loss_b];
          return (
            <div key={side} className="panel">
              <span className="side-name">
                <Swatch color={side === "a" ? COLOR.a : COLOR.b} /> {shownModel(side === "a" ? props.pair.a : props.pair.b)}
                <span className="muted small">loss {loss === null ? "undefined" : number(loss, 3)}</span>
              </span>
              <Tokens tokens={row.tokens} logp={logp} />
              {said !== null ? <blockquote><span className="muted small">says </span>{said || <i className="muted">says nothing</i>}</blockquote> : <span className="redacted" title="not revealed" style={{ justifySelf: "start" }}>hidden</span>}
            </div>
          );
        })}
      </div>
    </article>
  );
}

function Tokens(props: { tokens: string[] | null; logp: (number | null)[] }) {
  if (!props.logp.length) return <span className="small muted">no token probabilities were collected on these examples</span>;
  return (
    <div className="tokens" role="group" aria-label="tokens of the true answer">
      {props.logp.map((v, i) => {
        const share = v === null ? 0 : Math.min(1, -v / 8);
        const text = props.tokens?.[i] ?? "▁▁";
        return (
          <span
            key={i}
            title={v === null ? "undefined: not finite" : `${props.tokens ? `${JSON.stringify(text)}, ` : ""}ln p = ${number(v, 3)}`}
            style={{ background: `color-mix(in srgb, var(--target) ${Math.round(62 * share)}%, transparent)` }}
          >
            {text}
            {props.tokens ? "" : " "}
          </span>
        );
      })}
    </div>
  );
}
