// Distributions of a statistic with a threshold that can be dragged, or moved with the arrow keys.
import { useMemo, useRef } from "react";
import { number } from "../format";
import type { Bands } from "../api-types";
import { AxisX, AxisY } from "./Axis";
import { BandArea, BandKey } from "./Band";
import { Swatch, useWidth } from "./basics";
import { Save } from "./Save";
import { below, linear, logarithmic } from "./scale";

export interface Curve {
  name: string;
  color: string;
  /** Sorted values, or their share by bin where that is known. */
  values?: number[];
  shares?: (number | null)[];
  dashed?: boolean;
  mirrored?: boolean;
}

export function Distribution(props: {
  curves: Curve[];
  edges: number[];
  log: boolean;
  /** Retrained models' shares by bin, on the side of the mirrored curves where there are any. */
  band: Bands;
  unit: string;
  threshold: number;
  onThreshold: (value: number) => void;
  below: string;
  above: string;
  name: string;
  height?: number;
}) {
  const [place, width] = useWidth();
  const svg = useRef<SVGSVGElement>(null);
  const height = props.height ?? 250;
  const [left, right, top, bottom] = [46, 14, 30, 42];
  const { edges, band } = props;
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const x = useMemo(() => (props.log ? logarithmic : linear)(low, high, left, width - right), [low, high, props.log, width]);
  const at = useMemo(() => edges.map((e) => x(e)), [edges, x]);
  const shares = useMemo(() => props.curves.map((c) => c.shares?.map((s) => s ?? 0) ?? histogram(c.values ?? [], edges)), [props.curves, edges]);
  const most = Math.max(0.01, ...shares.flat(), ...band.high.map((v) => v ?? 0));
  const mirrored = props.curves.some((c) => c.mirrored);
  const base = mirrored ? top + (height - top - bottom) / 2 : height - bottom;
  const y = linear(0, most, base, top, mirrored ? 3 : 4);
  const cut = Math.min(width - right, Math.max(left, x(clampTo(props.threshold, low, high))));
  const down = (v: number) => 2 * base - y(v);
  const move = (clientX: number) => {
    const box = svg.current?.getBoundingClientRect();
    if (box) props.onThreshold(x.invert(Math.min(width - right, Math.max(left, clientX - box.left))));
  };
  const step = (pixels: number) => props.onThreshold(x.invert(Math.min(width - right, Math.max(left, cut + pixels))));
  return (
    <div ref={place} className="plot">
      <div className="legend">
        {props.curves.map((c) => (
          <span key={c.name}>
            <Swatch color={c.color} square={c.dashed} />
            {c.name}
          </span>
        ))}
        <BandKey band={band} />
        <span className="grow" />
        <Save of={place} name={props.name} />
      </div>
      {width > 0 && (
        <svg ref={svg} width={width} height={height} role="group" aria-label={`distributions, ${props.unit}`} style={{ display: "block" }}>
          <AxisY scale={y} x={left} to={width - right} title="share of examples" format={(v) => `${number(100 * v, 3)} %`} />
          <AxisX scale={x} y={height - bottom} x={[left, width - right]} title={props.unit} />
          {mirrored && <line className="gridline" x1={left} x2={width - right} y1={base} y2={base} />}
          <BandArea band={band} at={at} y={mirrored ? down : y} room={[top, height - bottom]} step />
          {props.curves.map((c, i) => (
            <path
              key={c.name}
              d={outline(shares[i], at, base, c.mirrored ? down : y)}
              fill={c.color}
              fillOpacity={c.dashed ? 0 : 0.14}
              stroke={c.color}
              strokeWidth={1.6}
              strokeDasharray={c.dashed ? "5 3" : undefined}
            />
          ))}
          <g
            className="handle"
            role="slider"
            tabIndex={0}
            aria-label="threshold"
            aria-valuenow={props.threshold}
            aria-valuemin={low}
            aria-valuemax={high}
            aria-valuetext={`${number(props.threshold)} ${props.unit}`}
            onPointerDown={(e) => {
              e.currentTarget.setPointerCapture(e.pointerId);
              move(e.clientX);
            }}
            onPointerMove={(e) => e.currentTarget.hasPointerCapture(e.pointerId) && move(e.clientX)}
            onKeyDown={(e) => {
              const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -20, PageUp: 20 }[e.key];
              if (by) {
                e.preventDefault();
                step(e.shiftKey ? 10 * by : by);
              }
            }}
          >
            <rect x={cut - 9} y={top - 14} width={18} height={height - bottom - top + 14} fill="transparent" />
            <line className="grip" x1={cut} x2={cut} y1={top - 12} y2={height - bottom} stroke="var(--ink)" strokeWidth={1.5} />
            <path d={`M${cut - 6},${top - 14}h12l-6,8z`} fill="var(--ink)" />
          </g>
          <text x={cut - 10} y={top - 6} textAnchor="end">
            {cut > left + 130 ? `${props.below} ◂` : ""}
          </text>
          <text x={cut + 10} y={top - 6}>
            {cut < width - right - 130 ? `▸ ${props.above}` : ""}
          </text>
        </svg>
      )}
    </div>
  );
}

const clampTo = (v: number, low: number, high: number) => Math.min(high, Math.max(low, v));

/** Shares of sorted values between edges; what lies outside is in the first or last bin. */
function histogram(values: number[], edges: number[]): number[] {
  const under = edges.map((e, i) => (i === 0 ? 0 : i === edges.length - 1 ? values.length : below(values, e)));
  return under.slice(1).map((n, i) => (n - under[i]) / Math.max(1, values.length));
}

function outline(shares: number[], at: number[], base: number, y: (v: number) => number): string {
  return `M${at[0]},${base}${shares.map((s, i) => `V${y(s).toFixed(1)}H${at[i + 1].toFixed(1)}`).join("")}V${base}Z`;
}
