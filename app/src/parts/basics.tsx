// The small things every page is made of.
import { type ReactNode, useEffect, useRef, useState } from "react";
import { measure, signed } from "../format";

export function useWidth(): [React.RefObject<HTMLDivElement | null>, number] {
  const place = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    if (!place.current) return;
    setWidth(place.current.clientWidth);
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(place.current);
    return () => observer.disconnect();
  }, []);
  return [place, width];
}

export function Panel(props: { title: string; tools?: ReactNode; caption?: ReactNode; children: ReactNode; id?: string }) {
  return (
    <section className="panel" id={props.id} aria-label={props.title}>
      <div className="head">
        <h2>{props.title}</h2>
        {props.tools && <div className="row">{props.tools}</div>}
      </div>
      {props.children}
      {props.caption && <p className="caption">{props.caption}</p>}
    </section>
  );
}

export function Choice<T extends string>(props: {
  label: string;
  value: T;
  options: readonly (T | { value: T; label: string })[];
  onChange: (value: T) => void;
}) {
  return (
    <label className="field">
      {props.label}
      <select value={props.value} onChange={(e) => props.onChange(e.target.value as T)}>
        {props.options.map((o) => {
          const [value, label] = typeof o === "string" ? [o, o] : [o.value, o.label];
          return (
            <option key={value} value={value}>
              {label}
            </option>
          );
        })}
      </select>
    </label>
  );
}

export function Segments<T extends string>(props: {
  label: string;
  value: T;
  options: readonly { value: T; label: string; title?: string }[];
  onChange: (value: T) => void;
}) {
  return (
    <div className="segments" role="group" aria-label={props.label}>
      {props.options.map((o) => (
        <button key={o.value} type="button" title={o.title} aria-pressed={o.value === props.value} onClick={() => props.onChange(o.value)}>
          {o.label}
        </button>
      ))}
    </div>
  );
}

export function Undefined(props: { reason: string; status?: string }) {
  return (
    <span className="undefined" title={props.reason} tabIndex={0}>
      {(props.status ?? "undefined").replace("_", " ")}
      <span className="visually-hidden">: {props.reason}</span>
    </span>
  );
}

/** A number with its unit, or why there is none. */
export function Value(props: { value: number | null | undefined; unit: string; reason?: string; status?: string | null }) {
  if (props.value === null || props.value === undefined)
    return <Undefined reason={props.reason || "it was not measured"} status={props.status ?? "undefined"} />;
  return <>{measure(props.value, props.unit)}</>;
}

export const Gap = (props: { gap: number | null; unit: string }) =>
  props.gap === null ? null : (
    <span className="gap" title="gap to the retrained models">
      {signed(props.gap, props.unit)}
    </span>
  );

export function Note(props: { children: ReactNode; wrong?: boolean }) {
  return (
    <p className={props.wrong ? "note wrong" : "note"} role={props.wrong ? "alert" : undefined}>
      {props.children}
    </p>
  );
}

export function Loading(props: { height?: number }) {
  return (
    <div aria-busy="true" role="status">
      <span className="visually-hidden">loading</span>
      <div className="skeleton" style={{ height: props.height ?? 240 }} />
    </div>
  );
}

export function Empty(props: { title: string; children: ReactNode }) {
  return (
    <div className="empty">
      <h2>{props.title}</h2>
      {props.children}
    </div>
  );
}

/** What was asked for, or why it is not there, or that it is on its way. */
export function Wait<T>(props: {
  of: { data: T | undefined; error: string; loading: boolean };
  height?: number;
  children: (data: T) => ReactNode;
}) {
  if (props.of.data !== undefined) return <>{props.children(props.of.data)}</>;
  if (props.of.error) return <Note wrong>{props.of.error}</Note>;
  return props.of.loading ? <Loading height={props.height} /> : null;
}

export function Swatch(props: { color: string; square?: boolean; ring?: boolean }) {
  return <span className={`swatch ${props.square ? "square" : ""} ${props.ring ? "ring" : ""}`} style={{ color: props.color }} aria-hidden="true" />;
}

export const COLOR = {
  a: "var(--unlearned)",
  b: "var(--series-5)",
  retrained: "var(--retrained)",
  target: "var(--target)",
  forget: "var(--unlearned)",
  retain: "var(--series-4)",
  holdout: "var(--series-6)",
};
export const SERIES = ["unlearned", "target", "series-4", "series-5", "series-6", "series-7", "series-8", "retrained"].map((n) => `var(--${n})`);
