// A table of any number of rows: only those in view are in the document.
import { type CSSProperties, type ReactNode, useEffect, useRef, useState } from "react";

export interface Column<Row> {
  key: string;
  title: string;
  sub?: string;
  hint?: string;
  width: number;
  right?: boolean;
  sortable?: boolean;
  cell: (row: Row, index: number) => ReactNode;
}
export interface Sort {
  key: string;
  descending: boolean;
}

export function Table<Row>(props: {
  label: string;
  columns: Column<Row>[];
  count: number;
  row: (index: number) => Row | undefined;
  rowKey?: (row: Row) => string;
  sort?: Sort;
  onSort?: (sort: Sort) => void;
  onHover?: (row: Row | undefined) => void;
  className?: (row: Row) => string;
  onView?: (first: number, last: number) => void;
  rowHeight?: number;
  most?: number;
}) {
  const height = props.rowHeight ?? 30;
  const place = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [room, setRoom] = useState(600);
  const total = props.count * height;
  const head = 46;
  const shown = Math.min(props.most ?? 560, total + head + 16);
  useEffect(() => {
    const box = place.current;
    if (!box) return;
    const observer = new ResizeObserver(() => setRoom(box.clientHeight));
    observer.observe(box);
    return () => observer.disconnect();
  }, []);
  const first = Math.max(0, Math.floor(top / height) - 8);
  const last = Math.min(props.count, Math.ceil((top + room) / height) + 8);
  const { onView } = props;
  useEffect(() => onView?.(first, last), [first, last, onView]);
  useEffect(() => {
    if (place.current) place.current.scrollTop = 0;
  }, [props.sort?.key, props.sort?.descending]);
  const grid: CSSProperties = { gridTemplateColumns: props.columns.map((c) => `${c.width}px`).join(" ") };
  const rows = [];
  for (let i = first; i < last; i++) {
    const row = props.row(i);
    const style = { ...grid, height, transform: `translateY(${i * height}px)` };
    if (row === undefined) {
      rows.push(<div key={i} className="vrow" style={style} />);
      continue;
    }
    rows.push(
      <div
        key={props.rowKey?.(row) ?? i}
        role="row"
        aria-rowindex={i + 2}
        className={`vrow ${props.className?.(row) ?? ""}`}
        style={style}
        onMouseEnter={props.onHover && (() => props.onHover?.(row))}
        onMouseLeave={props.onHover && (() => props.onHover?.(undefined))}
      >
        {props.columns.map((c, j) => (
          <div key={c.key} role={j === 0 ? "rowheader" : "cell"} className={`${c.right ? "right" : ""} ${j === 0 ? "pin" : ""}`}>
            {c.cell(row, i)}
          </div>
        ))}
      </div>,
    );
  }
  return (
    <div
      ref={place}
      className="vtable"
      role="table"
      aria-label={props.label}
      aria-rowcount={props.count + 1}
      tabIndex={0}
      style={{ height: shown }}
      onScroll={(e) => setTop(e.currentTarget.scrollTop)}
    >
      <div role="rowgroup" className="vhead" style={{ ...grid, minHeight: head }}>
        <div role="row" style={{ display: "contents" }}>
          {props.columns.map((c, j) => {
            const sorted = props.sort?.key === c.key;
            return (
              <div
                key={c.key}
                role="columnheader"
                className={`${c.right ? "right" : ""} ${j === 0 ? "pin" : ""}`}
                aria-sort={c.sortable ? (sorted ? (props.sort?.descending ? "descending" : "ascending") : "none") : undefined}
              >
                {c.sortable ? (
                  <button
                    type="button"
                    title={c.hint}
                    onClick={() => props.onSort?.({ key: c.key, descending: sorted ? !props.sort?.descending : false })}
                  >
                    {c.title}
                    {sorted && <span aria-hidden="true"> {props.sort?.descending ? "▾" : "▴"}</span>}
                    {c.sub && <span className="sub">{c.sub}</span>}
                  </button>
                ) : (
                  <span title={c.hint}>
                    {c.title}
                    {c.sub && <span className="sub">{c.sub}</span>}
                  </span>
                )}
              </div>
            );
          })}
        </div>
      </div>
      <div role="rowgroup" className="vbody" style={{ height: total, width: props.columns.reduce((w, c) => w + c.width, 0) }}>
        {rows}
      </div>
    </div>
  );
}

/** Row numbers in the order of a key; what has none comes last either way. */
export function ordered<Row>(rows: Row[], key: (row: Row) => number | string | null | undefined, descending: boolean): Row[] {
  const turn = descending ? -1 : 1;
  return rows
    .map((row, i) => ({ row, i, k: key(row) }))
    .sort((x, y) => {
      const none = (v: unknown) => v === null || v === undefined;
      if (none(x.k) || none(y.k)) return none(x.k) && none(y.k) ? x.i - y.i : none(x.k) ? 1 : -1;
      if (typeof x.k === "string" && typeof y.k === "string")
        return turn * x.k.localeCompare(y.k, "en", { numeric: true }) || x.i - y.i;
      return turn * ((x.k as number) - (y.k as number)) || x.i - y.i;
    })
    .map((found) => found.row);
}
