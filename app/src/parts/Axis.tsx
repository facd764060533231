import { number } from "../format";
import type { Scale } from "./scale";

const shown = (v: number, log: boolean) => (log ? (v >= 0.001 && v <= 1000 ? number(v) : `1e${Math.round(Math.log10(v))}`).replace("-", "−") : number(v));

export function AxisX(props: { scale: Scale; y: number; title?: string; x: [number, number]; format?: (v: number) => string }) {
  const [from, to] = props.x;
  return (
    <g className="axis">
      <line x1={from} x2={to} y1={props.y} y2={props.y} />
      {props.scale.ticks.map((t) => (
        <g key={t} transform={`translate(${props.scale(t)},${props.y})`}>
          <line y2={4} />
          <text y={17} textAnchor="middle">
            {props.format?.(t) ?? shown(t, props.scale.log)}
          </text>
        </g>
      ))}
      {props.title && (
        <text className="strong" x={(from + to) / 2} y={props.y + 34} textAnchor="middle">
          {props.title}
        </text>
      )}
    </g>
  );
}

export function AxisY(props: { scale: Scale; x: number; to: number; title?: string; format?: (v: number) => string }) {
  return (
    <g className="axis">
      {props.scale.ticks.map((t) => (
        <g key={t} transform={`translate(0,${props.scale(t)})`}>
          <line className="gridline" x1={props.x} x2={props.to} />
          <text x={props.x - 7} dy="0.32em" textAnchor="end">
            {props.format?.(t) ?? shown(t, props.scale.log)}
          </text>
        </g>
      ))}
      {props.title && (
        <text className="strong" x={props.x - 34} y={10} textAnchor="start">
          {props.title}
        </text>
      )}
    </g>
  );
}
