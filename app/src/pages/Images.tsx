// What two generators make of the same prompts, each from the same starting noise.
import { useState } from "react";
import { COLOR, Loading, Note, Panel, Swatch } from "../parts/basics";
import { query, useData } from "../api";
import { runPath, shownModel } from "../context";
import type { Gallery } from "../api-types";
import { Pager } from "./Answers";
import type { Pair } from "./Contrast";

const PAGE = 12;

export function Images(props: { pair: Pair }) {
  const { pair } = props;
  const [reveal, setReveal] = useState(false);
  const [page, setPage] = useState(0);
  const path = query(runPath(pair.run, "/images"), { ...pair, run: undefined, reveal, offset: page * PAGE || undefined, limit: PAGE });
  const found = useData<Gallery>(path);
  return (
    <Panel
      title="Images"
      tools={<Pager {...{ reveal, setReveal, page, setPage }} total={found.data?.total ?? 0} size={PAGE} />}
      caption="Both models start from the same noise for a row, so that what differs is the models'. Images and prompts leave the server only when they are revealed."
    >
      <div className="legend">
        {(["a", "b"] as const).map((side) => (
          <span key={side}>
            <Swatch color={COLOR[side]} /> {side.toUpperCase()}: {shownModel(pair[side])}
          </span>
        ))}
      </div>
      {found.error && <Note wrong>{found.error}</Note>}
      {found.data ? (
        <div className="gallery">
          {found.data.rows.map((row) => (
            <figure key={row.id}>
              {(["a", "b"] as const).map((side) => {
                const image = row[side];
                return image === null ? (
                  <span key={side} className="redacted" title="not revealed">
                    hidden
                  </span>
                ) : (
                  <img key={side} src={image} alt={`row ${row.id}, model ${side.toUpperCase()}`} style={{ borderColor: COLOR[side] }} />
                );
              })}
              <figcaption className="small">
                {row.id}
                {row.group !== null && <span className="muted"> · {row.group}</span>}
                {row.prompt !== null && <div>{row.prompt}</div>}
              </figcaption>
            </figure>
          ))}
        </div>
      ) : (
        !found.error && <Loading />
      )}
    </Panel>
  );
}
