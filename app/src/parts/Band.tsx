// Where retrained models lie, drawn one way everywhere: the darker part spans them, in the paler one a further one would lie.
import type { BandEnds, Bands } from "../api-types";

const [PALE, DARK] = [0.13, 0.25];
const PARTS = [
  ["least", "most", PALE],
  ["low", "high", DARK],
] as const;

const shade = (opacity: number) => `color-mix(in srgb, var(--retrained) ${100 * opacity}%, transparent)`;

/** Whether a further retrained model may lie outside of those there are, so that there is a paler part. */
const paler = (band: Bands) => band.low.some((low, i) => low !== band.least[i] || band.high[i] !== band.most[i]);

/** Entries of a legend; none where there is no band. */
export function BandKey(props: { band: Bands; name?: string }) {
  const { band, name = "retrained" } = props;
  if (band.models < 2) return null;
  return (
    <>
      <span>
        <span className="swatch square" style={{ background: shade(2 * DARK) }} aria-hidden="true" />
        {name}
      </span>
      {paler(band) && (
        <span>
          <span className="swatch square" style={{ background: shade(PALE) }} aria-hidden="true" />
          further ones (95 %)
        </span>
      )}
    </>
  );
}

/** A band over positions in pixels; `step`: each value holds until the next position, of which there is one more. */
export function BandArea(props: { band: Bands; at: number[]; y: (v: number) => number; room: [number, number]; step?: boolean }) {
  const { band, at, step } = props;
  const [top, bottom] = props.room;
  const inside = (v: number) => Math.min(bottom, Math.max(top, props.y(v))).toFixed(1);
  const area = (low: (number | null)[], high: (number | null)[]) => {
    let path = "";
    for (let i = 0; i < low.length; i++) {
      if (low[i] === null) continue;
      let j = i;
      while (j + 1 < low.length && low[j + 1] !== null) j++;
      const edge = (of: (number | null)[], order: number[]) =>
        order.flatMap((k) => {
          const v = inside(of[k] as number);
          const ends = step ? [at[k], at[k + 1]] : [at[k]];
          return (order[0] === i ? ends : ends.reverse()).map((x) => `${x.toFixed(1)},${v}`);
        });
      const there = Array.from({ length: j - i + 1 }, (_, k) => i + k);
      path += `M${edge(high, there).join("L")}L${edge(low, [...there].reverse()).join("L")}Z`;
      i = j;
    }
    return path;
  };
  if (band.models < 2) return null;
  return (
    <g className="band" aria-hidden="true">
      {PARTS.map(([low, high, opacity]) => (
        <path key={low} d={area(band[low], band[high])} fill="var(--retrained)" fillOpacity={opacity} />
      ))}
    </g>
  );
}

/** A band across a row of a chart. */
export function BandStripe(props: { band: BandEnds; x: (v: number) => number; room: [number, number]; y: number; height: number }) {
  const inside = (v: number) => Math.min(props.room[1], Math.max(props.room[0], props.x(v)));
  return (
    <g className="band" aria-hidden="true">
      {PARTS.map(([low, high, opacity]) => {
        const [from, to] = [inside(props.band[low]), inside(props.band[high])];
        return <rect key={low} x={from} y={props.y} width={to - from} height={props.height} fill="var(--retrained)" fillOpacity={opacity} />;
      })}
    </g>
  );
}

/** The band of two measures: a box of the models, rounded and somewhat wider so that it is seen where they agree, in a paler one. */
export function BandBox(props: { x: BandEnds; y: BandEnds; across: (v: number) => number; up: (v: number) => number; room: [number, number, number, number] }) {
  const { x, y, across, up } = props;
  const [left, right, top, bottom] = props.room;
  const clamp = (v: number, from: number, to: number) => Math.min(to, Math.max(from, v));
  const more = 8;
  const inner = [across(x.low) - more, across(x.high) + more, up(y.high) - more, up(y.low) + more];
  const wide = (band: BandEnds) => band.least < band.low || band.most > band.high;
  const outer = [
    ...(wide(x) ? [across(x.least), across(x.most)] : inner.slice(0, 2)).map((v) => clamp(v, left, right)),
    ...(wide(y) ? [up(y.most), up(y.least)] : inner.slice(2)).map((v) => clamp(v, top, bottom)),
  ];
  return (
    <g className="band">
      {[...(wide(x) || wide(y) ? [[outer, PALE] as const] : []), [inner, DARK] as const].map(([[x0, x1, y0, y1], opacity]) => (
        <rect key={opacity} x={x0} y={y0} width={x1 - x0} height={y1 - y0} rx={opacity === DARK ? 5 : 0} fill="var(--retrained)" fillOpacity={opacity} />
      ))}
      <text x={inner[1]} y={inner[2] - 5} textAnchor="end">
        retrained
      </text>
    </g>
  );
}
