// Points of one model in a plane that two models share; what is pointed at in one is marked in the other.
import { useEffect, useMemo, useRef, useState } from "react";
import { useWidth } from "./basics";

export interface Dot {
  id: string;
  x: number;
  y: number;
  color: string;
  ring?: boolean;
  hollow?: boolean;
  faded?: boolean;
}
export interface Window {
  zoom: number;
  dx: number;
  dy: number;
}
export const WHOLE: Window = { zoom: 1, dx: 0, dy: 0 };

export function Scatter(props: {
  dots: Dot[];
  extent: [number, number, number, number];
  lit?: string;
  onHover: (id: string | undefined) => void;
  window: Window;
  onWindow: (window: Window) => void;
  label: string;
  describe: (id: string) => string;
  square?: boolean;
  diagonal?: boolean;
  axes?: [string, string];
}) {
  const [place, width] = useWidth();
  const canvas = useRef<HTMLCanvasElement>(null);
  const drag = useRef<[number, number] | null>(null);
  const height = Math.min(440, Math.max(240, Math.round(width * 0.78)));
  const { zoom, dx, dy } = props.window;
  const [x0, x1, y0, y1] = props.extent;
  const scheme = useScheme();
  const project = useMemo(() => {
    const pad = 16;
    const [sx, sy] = [(width - 2 * pad) / (x1 - x0 || 1), (height - 2 * pad) / (y1 - y0 || 1)];
    const [px, py] = props.square ? [Math.min(sx, sy), Math.min(sx, sy)] : [sx, sy];
    return (x: number, y: number): [number, number] => [
      width / 2 + ((x - (x0 + x1) / 2) * px + dx) * zoom,
      height / 2 - ((y - (y0 + y1) / 2) * py + dy) * zoom,
    ];
  }, [width, height, x0, x1, y0, y1, zoom, dx, dy, props.square]);
  useEffect(() => {
    const board = canvas.current;
    if (!board || !width) return;
    const ratio = devicePixelRatio || 1;
    [board.width, board.height] = [width * ratio, height * ratio];
    const pen = board.getContext("2d") as CanvasRenderingContext2D;
    pen.scale(ratio, ratio);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(document.documentElement);
    const color = (name: string) => style.getPropertyValue(name.slice(4, -1)).trim() || name;
    if (props.diagonal) {
      pen.strokeStyle = color("var(--muted)");
      pen.setLineDash([4, 3]);
      pen.beginPath();
      pen.moveTo(...project(x0, x0));
      pen.lineTo(...project(x1, x1));
      pen.stroke();
      pen.setLineDash([]);
    }
    const known = new Map<string, string>();
    for (const pass of [true, false])
      for (const dot of props.dots) {
        if (!!dot.faded !== pass) continue;
        const [x, y] = project(dot.x, dot.y);
        if (!known.has(dot.color)) known.set(dot.color, color(dot.color));
        pen.globalAlpha = dot.faded ? 0.12 : 0.78;
        pen.fillStyle = pen.strokeStyle = known.get(dot.color) as string;
        pen.beginPath();
        if (dot.hollow) {
          pen.lineWidth = 1.4;
          pen.moveTo(x - 3, y - 3);
          pen.lineTo(x + 3, y + 3);
          pen.moveTo(x + 3, y - 3);
          pen.lineTo(x - 3, y + 3);
          pen.stroke();
        } else if (dot.ring) {
          pen.lineWidth = 1.4;
          pen.arc(x, y, 2.8, 0, 7);
          pen.stroke();
        } else {
          pen.arc(x, y, 2.8, 0, 7);
          pen.fill();
        }
      }
    pen.globalAlpha = 1;
    const marked = props.lit === undefined ? undefined : props.dots.find((d) => d.id === props.lit);
    if (marked) {
      const [x, y] = project(marked.x, marked.y);
      pen.strokeStyle = color("var(--ink)");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(x, y, 8, 0, 7);
      pen.stroke();
    }
  }, [props.dots, props.lit, width, height, project, scheme, props.diagonal, x0, x1]);
  const nearest = (clientX: number, clientY: number) => {
    const box = canvas.current?.getBoundingClientRect();
    if (!box) return undefined;
    let [best, found] = [14 * 14, undefined as string | undefined];
    for (const dot of props.dots) {
      if (dot.faded) continue;
      const [x, y] = project(dot.x, dot.y);
      const d = (x - clientX + box.left) ** 2 + (y - clientY + box.top) ** 2;
      if (d < best) [best, found] = [d, dot.id];
    }
    return found;
  };
  const lit = props.lit === undefined ? undefined : props.dots.find((d) => d.id === props.lit);
  const [tx, ty] = lit ? project(lit.x, lit.y) : [0, 0];
  const zoomed = (by: number) => props.onWindow({ ...props.window, zoom: Math.min(32, Math.max(0.6, zoom * by)) });
  return (
    <div ref={place} className="plot">
      <canvas
        ref={canvas}
        style={{ height, border: "1px solid var(--rule)", borderRadius: 6 }}
        role="img"
        aria-label={props.label}
        tabIndex={0}
        onPointerDown={(e) => {
          drag.current = [e.clientX, e.clientY];
          e.currentTarget.setPointerCapture(e.pointerId);
        }}
        onPointerUp={() => {
          drag.current = null;
        }}
        onPointerMove={(e) => {
          if (drag.current) {
            const [x, y] = drag.current;
            drag.current = [e.clientX, e.clientY];
            props.onWindow({ zoom, dx: dx + (e.clientX - x) / zoom, dy: dy - (e.clientY - y) / zoom });
          } else {
            const id = nearest(e.clientX, e.clientY);
            if (id !== props.lit) props.onHover(id);
          }
        }}
        onPointerLeave={() => props.onHover(undefined)}
        onDoubleClick={() => props.onWindow(WHOLE)}
        onKeyDown={(e) => {
          if (e.key === "+" || e.key === "=") zoomed(1.3);
          if (e.key === "-") zoomed(1 / 1.3);
          if (e.key === "0") props.onWindow(WHOLE);
        }}
      />
      {props.axes && (
        <div className="row small muted" style={{ justifyContent: "space-between" }}>
          <span>→ {props.axes[0]}</span>
          <span>↑ {props.axes[1]}</span>
        </div>
      )}
      {lit && tx > 0 && tx < width && ty > 0 && ty < height && (
        <div className="tip" style={tx > width / 2 ? { right: width - tx + 14, top: ty } : { left: tx + 14, top: ty }}>
          {props.describe(lit.id)}
        </div>
      )}
    </div>
  );
}

/** Changes when the page turns dark or light, so that canvases are drawn anew. */
export function useScheme(): string {
  const read = () => getComputedStyle(document.documentElement).getPropertyValue("--paper");
  const [scheme, setScheme] = useState(read);
  useEffect(() => {
    const changed = () => setScheme(read());
    const media = matchMedia("(prefers-color-scheme: dark)");
    const observer = new MutationObserver(changed);
    observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    media.addEventListener("change", changed);
    return () => {
      observer.disconnect();
      media.removeEventListener("change", changed);
    };
  }, []);
  return scheme;
}
