// Distributions of a statistic with a threshold that can be dragged, or moved with the arrow keys.
import { useMemo, useRef } from "react";
import { number } from "../format";
import { AxisX, AxisY } from "./Axis";
import { Swatch, useWidth } from "./basics";
import { Save } from "./Save";
import { type Scale, linear, logarithmic } from "./scale";

export interface Curve {
  name: string;
  color: string;
  values: number[];
  dashed?: boolean;
  mirrored?: boolean;
}

const BINS = 48;

export function Distribution(props: {
  curves: Curve[];
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
  const [low, high, log] = useMemo(() => domain(props.curves), [props.curves]);
  const x = useMemo(
    () => (log ? logarithmic(low, high, left, width - right) : linear(low, high, left, width - right)),
    [low, high, log, width],
  );
  const shares = useMemo(() => props.curves.map((c) => histogram(c.values, x, left, width - right)), [props.curves, x, width]);
  const most = Math.max(0.01, ...shares.flat());
  const mirrored = props.curves.some((c) => c.mirrored);
  const base = mirrored ? top + (height - top - bottom) / 2 : height - bottom;
  const y = linear(0, most, base, top, mirrored ? 3 : 4);
  const at = Math.min(width - right, Math.max(left, x(clampTo(props.threshold, low, high))));
  const move = (clientX: number) => {
    const box = svg.current?.getBoundingClientRect();
    if (box) props.onThreshold(x.invert(Math.min(width - right, Math.max(left, clientX - box.left))));
  };
  const step = (pixels: number) => props.onThreshold(x.invert(Math.min(width - right, Math.max(left, at + pixels))));
  return (
    <div ref={place} className="plot">
      <div className="legend">
        {props.curves.map((c) => (
          <span key={c.name}>
            <Swatch color={c.color} square={c.dashed} />
            {c.name}
          </span>
        ))}
        <span className="grow" />
        <Save of={place} name={props.name} />
      </div>
      {width > 0 && (
        <svg ref={svg} width={width} height={height} role="group" aria-label={`distributions, ${props.unit}`} style={{ display: "block" }}>
          <AxisY scale={y} x={left} to={width - right} title="share of examples" format={(v) => `${number(100 * v, 3)} %`} />
          <AxisX scale={x} y={height - bottom} x={[left, width - right]} title={props.unit} />
          {mirrored && <line className="gridline" x1={left} x2={width - right} y1={base} y2={base} />}
          {props.curves.map((c, i) => (
            <path
              key={c.name}
              d={outline(shares[i], left, width - right, base, c.mirrored ? (v) => 2 * base - y(v) : y)}
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
            <rect x={at - 9} y={top - 14} width={18} height={height - bottom - top + 14} fill="transparent" />
            <line className="grip" x1={at} x2={at} y1={top - 12} y2={height - bottom} stroke="var(--ink)" strokeWidth={1.5} />
            <path d={`M${at - 6},${top - 14}h12l-6,8z`} fill="var(--ink)" />
          </g>
          <text x={at - 10} y={top - 6} textAnchor="end">
            {at > left + 130 ? `${props.below} ◂` : ""}
          </text>
          <text x={at + 10} y={top - 6}>
            {at < width - right - 130 ? `▸ ${props.above}` : ""}
          </text>
        </svg>
      )}
    </div>
  );
}

const clampTo = (v: number, low: number, high: number) => Math.min(high, Math.max(low, v));

function domain(curves: Curve[]): [number, number, boolean] {
  let [low, high] = [Infinity, -Infinity];
  for (const c of curves)
    if (c.values.length) {
      low = Math.min(low, c.values[0]);
      high = Math.max(high, c.values[c.values.length - 1]);
    }
  if (!Number.isFinite(low)) return [0, 1, false];
  if (low >= 0 && high > 0) {
    const all = curves.flatMap((c) => c.values).sort((a, b) => a - b);
    const floor = Math.max(1e-6, all[Math.floor(all.length * 0.01)]);
    if (high / floor > 50) return [Math.min(floor, high / 10), high, true];
  }
  return high > low ? [low, high, false] : [low - 0.5, low + 0.5, false];
}

function histogram(values: number[], x: Scale, from: number, to: number): number[] {
  const counts = new Array<number>(BINS).fill(0);
  for (const v of values) counts[Math.min(BINS - 1, Math.max(0, Math.floor(((x(v) - from) / (to - from)) * BINS)))]++;
  return counts.map((c) => c / Math.max(1, values.length));
}

function outline(shares: number[], from: number, to: number, base: number, y: (v: number) => number): string {
  const step = (to - from) / BINS;
  return `M${from},${base}${shares.map((s, i) => `V${y(s).toFixed(1)}H${(from + (i + 1) * step).toFixed(1)}`).join("")}V${base}Z`;
}
