import type { RefObject } from "react";
import { drawing, png, save } from "./save";

/** Buttons that keep the drawing inside an element. */
export function Save(props: { of: RefObject<HTMLElement | null>; name: string }) {
  const find = () => {
    const svg = props.of.current?.querySelector("svg");
    if (!svg) throw new Error("there is no drawing");
    return svg;
  };
  return (
    <span className="row">
      <button type="button" className="plain" onClick={() => save(new Blob([drawing(find())], { type: "image/svg+xml" }), `${props.name}.svg`)}>
        SVG
      </button>
      <button
        type="button"
        className="plain"
        onClick={async () => {
          const svg = find();
          save(await png(drawing(svg), svg.clientWidth, svg.clientHeight), `${props.name}.png`);
        }}
      >
        PNG
      </button>
    </span>
  );
}
