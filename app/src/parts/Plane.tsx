// Models as points of two measures, with intervals and the box of the retrained models.
import { AxisX, AxisY } from "./Axis";
import type { BandEnds } from "../api-types";
import { BandBox } from "./Band";
import { useWidth } from "./basics";
import { Save } from "./Save";
import { linear } from "./scale";

export interface PlanePoint {
  id: string;
  label: string;
  role: string;
  x: number;
  y: number;
  xs: [number, number];
  ys: [number, number];
}

export function Plane(props: {
  points: PlanePoint[];
  box: [BandEnds | null, BandEnds | null];
  names: [string, string];
  format: [(v: number) => string, (v: number) => string];
  lit?: string;
  onHover: (id: string | undefined) => void;
}) {
  const [place, width] = useWidth();
  const height = 360;
  const [left, right, top, bottom] = [64, 20, 24, 44];
  const { points } = props;
  const range = (of: (p: PlanePoint) => number, box: BandEnds | null): [number, number] => {
    const all = [...points.map(of), ...(box ? [box.low, box.high] : [])];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - pad, high + pad];
  };
  if (!points.length) return <p className="muted">No model has a value in both.</p>;
  const x = linear(...range((p) => p.x, props.box[0]), left, width - right, Math.max(2, Math.floor(width / 100)));
  const y = linear(...range((p) => p.y, props.box[1]), height - bottom, top, 6);
  const [bx, by] = props.box;
  const inside = (v: number, from: number, to: number) => Math.min(to, Math.max(from, v));
  const named = points.length <= 24;
  return (
    <div ref={place} className="plot">
      <div className="row">
        <span className="grow" />
        <Save of={place} name="measures" />
      </div>
      {width > 0 && (
        <svg width={width} height={height} role="img" aria-label={`${props.names[1]} against ${props.names[0]}`} style={{ display: "block" }}>
          <AxisY scale={y} x={left} to={width - right} title={props.names[1]} format={props.format[1]} />
          <AxisX scale={x} y={height - bottom} x={[left, width - right]} title={props.names[0]} format={props.format[0]} />
          {bx && by && <BandBox x={bx} y={by} across={x} up={y} room={[left, width - right, top, height - bottom]} />}
          {points.map((p) => {
            const color = `var(--${p.role === "unlearned" ? "unlearned" : p.role})`;
            const [cx, cy] = [x(p.x), y(p.y)];
            const on = props.lit === p.id;
            return (
              <g key={p.id} opacity={props.lit && !on ? 0.35 : 1} onMouseEnter={() => props.onHover(p.id)} onMouseLeave={() => props.onHover(undefined)}>
                {on && (
                  <>
                    <line x1={inside(x(p.xs[0]), left, width - right)} x2={inside(x(p.xs[1]), left, width - right)} y1={cy} y2={cy} stroke={color} />
                    <line y1={inside(y(p.ys[0]), top, height - bottom)} y2={inside(y(p.ys[1]), top, height - bottom)} x1={cx} x2={cx} stroke={color} />
                  </>
                )}
                {p.role === "target" ? (
                  <path d={`M${cx},${cy - 7}l7,7l-7,7l-7,-7z`} fill={color} />
                ) : p.role === "retrained" ? (
                  <rect x={cx - 5} y={cy - 5} width={10} height={10} fill={color} />
                ) : (
                  <circle cx={cx} cy={cy} r={5} fill={color} />
                )}
                <circle cx={cx} cy={cy} r={11} fill="transparent">
                  <title>{`${p.label}: ${props.format[0](p.x)}, ${props.format[1](p.y)}`}</title>
                </circle>
                {(named || on) && (
                  <text className={on ? "strong" : ""} x={cx > width - 140 ? cx - 10 : cx + 10} y={cy} dy="0.34em" textAnchor={cx > width - 140 ? "end" : "start"}>
                    {p.label.length > 26 ? `${p.label.slice(0, 25)}…` : p.label}
                  </text>
                )}
              </g>
            );
          })}
        </svg>
      )}
    </div>
  );
}
