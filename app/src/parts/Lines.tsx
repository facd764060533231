// Lines over few positions: layers, or what an attacker spends.
import { useState } from "react";
import { number } from "../format";
import { AxisX, AxisY } from "./Axis";
import type { Bands } from "../api-types";
import { BandArea, BandKey } from "./Band";
import { Swatch, useWidth } from "./basics";
import { Save } from "./Save";
import { linear } from "./scale";

export interface Line {
  name: string;
  color: string;
  dashed?: boolean;
  at: number[];
  values: (number | null)[];
}

export interface LineBand {
  name?: string;
  at: number[];
  band: Bands;
}

export function Lines(props: {
  lines: Line[];
  bands?: LineBand[];
  name: string;
  title: string;
  over: string;
  labels?: string[];
  range?: [number, number];
  lit?: number;
  onHover?: (index: number | undefined) => void;
}) {
  const [place, width] = useWidth();
  const [near, setNear] = useState<number>();
  const height = 250;
  const [left, right, top, bottom] = [52, 30, 26, 44];
  const bands = props.bands ?? [];
  const every = [...props.lines, ...bands].flatMap((l) => l.at);
  const values = [...props.lines.flatMap((l) => l.values), ...bands.flatMap((b) => [...b.band.low, ...b.band.high])].filter((v): v is number => v !== null);
  const [low, high] = props.range ?? [Math.min(...values), Math.max(...values)];
  const pad = props.range ? 0 : (high - low || Math.abs(high) || 1) * 0.06;
  const positions = [...new Set(every)].sort((a, b) => a - b);
  // What is recorded from large to small, such as bits, is drawn so: effort goes to the right.
  const falling = props.lines.length > 0 && props.lines.every((l) => l.at.length > 1 && l.at[0] > l.at[l.at.length - 1]);
  const ends: [number, number] = falling ? [width - right - 10, left + 10] : [left + 10, width - right - 10];
  const x = linear(positions[0] ?? 0, positions.at(-1) ?? 1, ...ends, Math.max(2, Math.floor(width / 90)));
  if (props.labels) x.ticks = positions;
  const y = linear(low - pad, high + pad, height - bottom, top, 5);
  const lit = props.lit ?? near;
  const hover = (i: number | undefined) => {
    setNear(i);
    props.onHover?.(i);
  };
  return (
    <div ref={place} className="plot">
      <div className="legend">
        {props.lines.map((l) => (
          <span key={l.name}>
            <Swatch color={l.color} square={l.dashed} />
            {l.name}
            {lit !== undefined && l.at.includes(lit) && <b>{shownAt(l, lit)}</b>}
          </span>
        ))}
        {bands.map((b, i) => (
          <BandKey key={i} band={b.band} name={b.name} />
        ))}
        <span className="grow" />
        <Save of={place} name={props.name} />
      </div>
      {width > 0 && values.length > 0 && (
        <svg
          width={width}
          height={height}
          role="img"
          aria-label={props.title}
          style={{ display: "block" }}
          onMouseLeave={() => hover(undefined)}
          onMouseMove={(e) => {
            const px = e.clientX - e.currentTarget.getBoundingClientRect().left;
            hover(positions.reduce((best, p) => (Math.abs(x(p) - px) < Math.abs(x(best) - px) ? p : best), positions[0]));
          }}
        >
          <AxisY scale={y} x={left} to={width - right} title={props.title} />
          <AxisX
            scale={x}
            y={height - bottom}
            x={[left, width - right]}
            title={props.over}
            format={props.labels ? (v) => short((props.labels as string[])[v] ?? "", (width - left) / positions.length) : undefined}
          />
          {lit !== undefined && <line className="gridline" x1={x(lit)} x2={x(lit)} y1={top} y2={height - bottom} />}
          {bands.map((b, i) => (
            <BandArea key={i} band={b.band} at={b.at.map(x)} y={y} room={[top, height - bottom]} />
          ))}
          {props.lines.map((l, i) => (
            <g key={`${l.name}${i}`}>
              <path d={pathOf(l, x, y)} fill="none" stroke={l.color} strokeWidth={1.9} strokeDasharray={l.dashed ? "5 3" : undefined} />
              {l.at.map((p, j) => {
                const v = l.values[j];
                return v === null ? null : <circle key={p} cx={x(p)} cy={y(v)} r={3} fill={l.color} />;
              })}
            </g>
          ))}
        </svg>
      )}
    </div>
  );
}

function shownAt(line: Line, at: number): string {
  const value = line.values[line.at.indexOf(at)];
  return value === null || value === undefined ? "undefined" : number(value, 3);
}

const short = (text: string, room: number) => (text.length * 6.2 > room - 6 ? `${text.slice(0, Math.max(2, Math.floor(room / 6.2) - 2))}…` : text);

function pathOf(line: Line, x: (v: number) => number, y: (v: number) => number): string {
  let path = "";
  let pen = "M";
  line.at.forEach((p, i) => {
    const v = line.values[i];
    if (v === null) pen = "M";
    else {
      path += `${pen}${x(p).toFixed(1)},${y(v).toFixed(1)}`;
      pen = "L";
    }
  });
  return path;
}
