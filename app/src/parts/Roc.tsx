// ROC curves on logarithmic axes, where an attack that is certain of a few members shows.
import { useMemo } from "react";
import { number } from "../format";
import { AxisX, AxisY } from "./Axis";
import type { BandCurve } from "../api-types";
import { BandArea, BandKey } from "./Band";
import { COLOR, Swatch, useWidth } from "./basics";
import { Save } from "./Save";
import { linear, logarithmic } from "./scale";

export interface RocSide {
  name: string;
  color: string;
  members: number[];
  nonmembers: number[];
  membersBelow: boolean;
}

/** False and true positive rate at every threshold, from (0, 0) to (1, 1). */
export function roc(members: number[], nonmembers: number[], membersBelow: boolean): [number, number][] {
  const sign = membersBelow ? 1 : -1;
  const all = [...members.map((v) => [sign * v, 1]), ...nonmembers.map((v) => [sign * v, 0])].sort((a, b) => a[0] - b[0]);
  const points: [number, number][] = [[0, 0]];
  let [tp, fp] = [0, 0];
  for (let i = 0; i < all.length; i++) {
    if (all[i][1]) tp++;
    else fp++;
    if (i + 1 === all.length || all[i + 1][0] !== all[i][0]) points.push([fp / nonmembers.length, tp / members.length]);
  }
  return points;
}

/** Area under a curve of `roc`, by trapezoids: the Mann-Whitney statistic with ties counted half. */
export function area(points: [number, number][]): number {
  let sum = 0;
  for (let i = 1; i < points.length; i++) sum += ((points[i][0] - points[i - 1][0]) * (points[i][1] + points[i - 1][1])) / 2;
  return sum;
}

export function Roc(props: { sides: RocSide[]; band: BandCurve; at?: [number, number]; log: boolean }) {
  const [place, width] = useWidth();
  const curves = useMemo(() => props.sides.map((s) => roc(s.members, s.nonmembers, s.membersBelow)), [props.sides]);
  const height = Math.min(380, Math.max(220, width * 0.75));
  const [left, right, top, bottom] = [52, 26, 24, 42];
  const rows = Math.max(10, ...props.sides.map((s) => Math.max(s.members.length, s.nonmembers.length)));
  const floor = 10 ** Math.floor(Math.log10(1 / rows));
  const x = props.log ? logarithmic(floor, 1, left, width - right) : linear(0, 1, left, width - right, 5);
  const y = props.log ? logarithmic(floor, 1, height - bottom, top) : linear(0, 1, height - bottom, top, 5);
  const { band } = props;
  const seen = band.at.map((f) => !props.log || f >= floor); // what is rarer than the axis shows
  const kept = <T,>(values: T[]) => values.filter((_, i) => seen[i]);
  const shown: BandCurve = { ...band, at: kept(band.at), mean: kept(band.mean), low: kept(band.low), high: kept(band.high), least: kept(band.least), most: kept(band.most) };
  const guess = Array.from({ length: 40 }, (_, i) => (props.log ? floor ** (1 - i / 39) : i / 39));
  return (
    <div ref={place} className="plot">
      <div className="legend">
        {props.sides.map((s) => (
          <span key={s.name}>
            <Swatch color={s.color} />
            {s.name}
          </span>
        ))}
        {band.models > 0 && (
          <span>
            <Swatch color={COLOR.retrained} square />
            {band.models > 1 ? "retrained, mean" : "retrained"}
          </span>
        )}
        <BandKey band={band} />
        <span className="grow" />
        <Save of={place} name="roc" />
      </div>
      {width > 0 && (
        <svg width={width} height={height} role="img" aria-label="ROC curves" style={{ display: "block" }}>
          <AxisY scale={y} x={left} to={width - right} title="members found" format={(v) => `${number(100 * v, 3)} %`} />
          <AxisX scale={x} y={height - bottom} x={[left, width - right]} title="non-members called members" format={(v) => `${number(100 * v, 3)} %`} />
          <path d={`M${guess.map((v) => `${x(v)},${y(v)}`).join("L")}`} fill="none" stroke="var(--muted)" strokeDasharray="4 3" />
          <BandArea band={shown} at={shown.at.map(x)} y={y} room={[top, height - bottom]} />
          {band.models > 0 && (
            <path
              d={`M${shown.at.flatMap((f, i) => (shown.mean[i] === null || (props.log && shown.mean[i] === 0) ? [] : [`${x(f).toFixed(1)},${y(shown.mean[i] as number).toFixed(1)}`])).join("L")}`}
              fill="none"
              stroke={COLOR.retrained}
              strokeDasharray="5 3"
              strokeWidth={1.6}
            />
          )}
          {curves.map((points, i) => (
            <path
              key={props.sides[i].name}
              d={`M${points.filter(([, t]) => !props.log || t > 0).map(([f, t]) => `${x(f).toFixed(1)},${y(t).toFixed(1)}`).join("L")}`}
              fill="none"
              stroke={props.sides[i].color}
              strokeWidth={1.8}
            />
          ))}
          {props.at && <circle cx={x(props.at[0])} cy={y(props.at[1])} r={5} fill="var(--paper)" stroke="var(--ink)" strokeWidth={2} />}
        </svg>
      )}
    </div>
  );
}
