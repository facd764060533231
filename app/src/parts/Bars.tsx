// One metric by group: two models beside each other over the band of the retrained models; or the difference of the two.
import type { ReactNode } from "react";
import { number } from "../format";
import type { BandEnds, GroupBars } from "../api-types";
import { AxisX } from "./Axis";
import { BandKey, BandStripe } from "./Band";
import { COLOR, useWidth } from "./basics";
import { Save } from "./Save";
import { linear } from "./scale";

export function Bars(props: {
  bars: GroupBars;
  difference: boolean;
  names: [string, string];
  legend: ReactNode;
  lit?: string;
  onHover: (group: string | undefined) => void;
}) {
  const { bars } = props;
  const [place, width] = useWidth();
  const each = props.difference ? 22 : 28;
  const longest = Math.max(...bars.groups.map((g) => g.length));
  const [left, right, top] = [Math.min(160, 18 + 7 * longest), 54, 6];
  const height = top + each * bars.groups.length + 40;
  const share = bars.unit === "share";
  const scaled = (v: number) => (share ? `${number(100 * v, 3)} %` : number(v, 3));
  const values = [...bars.a, ...bars.b, ...bars.retrained.low, ...bars.retrained.high].filter((v): v is number => v !== null);
  const gaps = bars.groups.map((_, i) => diff(bars.a[i], bars.b[i]));
  const reach = Math.max(1e-9, ...gaps.map((g) => Math.abs(g ?? 0)));
  const x = props.difference
    ? linear(-reach, reach, left, width - right, 4)
    : linear(Math.min(0, ...values), share ? 1 : Math.max(...values), left, width - right, 5);
  const zero = x(0);
  return (
    <div ref={place} className="plot">
      <div className="row">
        {props.legend}
        <span className="legend">{!props.difference && <BandKey band={bars.retrained} />}</span>
        <span className="grow" />
        <Save of={place} name={`${bars.metric}-by-group`} />
      </div>
      {width > 0 && (
        <svg width={width} height={height} role="img" aria-label={`${bars.title} by group`} style={{ display: "block" }}>
          {x.ticks.map((t) => (
            <line key={t} className="gridline" x1={x(t)} x2={x(t)} y1={top} y2={height - 38} />
          ))}
          {bars.groups.map((group, i) => {
            const y = top + i * each;
            const [a, b, r] = [bars.a[i], bars.b[i], bandAt(bars, i)];
            const on = props.lit === group;
            const bar = (v: number | null, at: number, thick: number, color: string) =>
              v === null ? null : (
                <rect x={Math.min(zero, x(v))} y={at} width={Math.max(1, Math.abs(x(v) - zero))} height={thick} fill={color} rx={1} />
              );
            return (
              <g key={group} data-group={group} onMouseEnter={() => props.onHover(group)} onMouseLeave={() => props.onHover(undefined)} opacity={props.lit && !on ? 0.4 : 1}>
                <rect x={0} y={y} width={width} height={each} fill="transparent" />
                <text className={on ? "strong" : ""} x={left - 8} y={y + each / 2} dy="0.34em" textAnchor="end">
                  {group.length > 20 ? `${group.slice(0, 19)}…` : group}
                </text>
                {!props.difference && r && <BandStripe band={r} x={x} room={[left, width - right]} y={y + 1} height={each - 2} />}
                {props.difference
                  ? bar(gaps[i], y + 4, each - 8, (gaps[i] ?? 0) >= 0 ? COLOR.b : COLOR.a)
                  : [<g key="a">{bar(a, y + 5, 8, COLOR.a)}</g>, <g key="b">{bar(b, y + 15, 8, COLOR.b)}</g>]}
                {!props.difference && r && <line x1={x(r.mean)} x2={x(r.mean)} y1={y + 1} y2={y + each - 1} stroke="var(--ink)" strokeWidth={2} />}
                <text className={on ? "strong" : ""} x={width - right + 6} y={y + each / 2} dy="0.34em">
                  {gaps[i] === null ? "–" : `${(gaps[i] as number) > 0 ? "+" : ""}${share ? number(100 * (gaps[i] as number), 3) : number(gaps[i] as number, 2)}`}
                </text>
              </g>
            );
          })}
          <AxisX scale={x} y={height - 38} x={[left, width - right]} title={props.difference ? `${props.names[1]} minus ${props.names[0]}` : undefined} format={scaled} />
        </svg>
      )}
    </div>
  );
}

/** The band of a group; none of a group that no retrained model has. */
function bandAt(bars: GroupBars, i: number): (BandEnds & { mean: number }) | null {
  const { mean, low, high, least, most } = bars.retrained;
  return mean[i] === null ? null : ({ mean: mean[i], low: low[i], high: high[i], least: least[i], most: most[i] } as BandEnds & { mean: number });
}

const diff = (a: number | null, b: number | null) => (a === null || b === null ? null : b - a);
