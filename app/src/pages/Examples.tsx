// Every example of a split in both models. The server sorts and filters; a page is fetched when it comes into view.
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { type Column, type Sort, Table } from "../parts/Table";
import { Choice, Note, Panel, Undefined } from "../parts/basics";
import { number, plural } from "../format";
import { BUNDLE, ask, query } from "../api";
import { runPath } from "../context";
import type { ExamplePage } from "../api-types";
import type { Pair } from "./Contrast";

const PAGE = 200;
interface Row {
  id: string;
  group: string | null;
  page: ExamplePage;
  at: number;
}

export function Examples(props: { pair: Pair; lit?: string; onHover: (id: string | undefined) => void }) {
  const { pair } = props;
  const [sort, setSort] = useState<Sort>({ key: "", descending: false });
  const [search, setSearch] = useState("");
  const [only, setOnly] = useState("");
  const pages = useRef(new Map<number, ExamplePage>());
  const [first, setFirst] = useState<ExamplePage>();
  const [error, setError] = useState("");
  const [, redraw] = useState(0);
  const key = JSON.stringify([pair, sort, search, only]);
  const current = useRef(key);
  const fetchPage = useCallback(
    (page: number) => {
      const path = query(runPath(pair.run, "/examples"), {
        ...pair, run: undefined, sort: sort.key, descending: sort.descending, search, only, offset: page * PAGE || undefined, limit: PAGE,
      });
      return ask<ExamplePage>(path);
    },
    [key],
  );
  useEffect(() => {
    current.current = key;
    pages.current = new Map();
    setError("");
    const timer = setTimeout(
      () =>
        fetchPage(0).then(
          (found) => {
            if (current.current !== key) return;
            pages.current.set(0, found);
            setFirst(found);
          },
          (e: Error) => current.current === key && setError(e.message),
        ),
      search ? 150 : 0,
    );
    return () => clearTimeout(timer);
  }, [key, fetchPage]);
  const view = useCallback(
    (from: number, to: number) => {
      for (let p = Math.floor(from / PAGE); p <= Math.floor(Math.max(from, to - 1) / PAGE); p++) {
        if (pages.current.has(p) || p === 0 || BUNDLE) continue;
        const asked = key;
        fetchPage(p).then((found) => {
          if (current.current !== asked) return;
          pages.current.set(p, found);
          redraw((n) => n + 1);
        });
      }
    },
    [key, fetchPage],
  );
  const columns = useMemo(() => columnsOf(first), [first]);
  const row = (i: number): Row | undefined => {
    const page = pages.current.get(Math.floor(i / PAGE)) ?? (i < PAGE ? first : undefined);
    const at = i % PAGE;
    return page && at < page.ids.length ? { id: page.ids[at], group: page.groups?.[at] ?? null, page, at } : undefined;
  };
  const address = (kind: string) => query(runPath(pair.run, `/examples.${kind}`), { ...pair, run: undefined });
  const lost = Object.entries(first?.undefined ?? {});
  const count = first ? (BUNDLE ? Math.min(first.matching, first.ids.length) : first.matching) : 0;
  return (
    <Panel
      title="Examples"
      tools={
        !BUNDLE && (
          <>
            <label className="field">
              Id or group
              <input type="search" value={search} onChange={(e) => setSearch(e.target.value)} />
            </label>
            <Choice
              label="Rows"
              value={only}
              options={[
                { value: "", label: "all" },
                { value: "changed", label: "predictions differ" },
                { value: "worse", label: "A right, B wrong" },
                { value: "better", label: "A wrong, B right" },
              ]}
              onChange={setOnly}
            />
            <a className="button" href={address("csv")} download>
              CSV
            </a>
            <a className="button" href={address("parquet")} download>
              Parquet
            </a>
          </>
        )
      }
      caption={
        first &&
        `${plural(first.matching, "row")}${first.matching < first.total ? ` of ${first.total.toLocaleString("en")}` : ""}${BUNDLE && count < first.matching ? `; the first ${count} are published` : ""}.${lost.length ? ` Values that are not finite read undefined: ${lost.map(([q, n]) => `${n} of ${q}`).join(", ")}.` : ""}`
      }
    >
      {error && <Note wrong>{error}</Note>}
      {first && !error && (
        <Table
          label="examples"
          columns={columns}
          count={count}
          row={row}
          rowKey={(r) => r.id}
          sort={sort}
          onSort={BUNDLE ? undefined : setSort}
          onView={view}
          onHover={(r) => props.onHover(r?.id)}
          className={(r) => (r.id === props.lit ? "lit" : "")}
          rowHeight={28}
          most={460}
        />
      )}
    </Panel>
  );
}

function columnsOf(page: ExamplePage | undefined): Column<Row>[] {
  if (!page) return [];
  const made: Column<Row>[] = [
    { key: "id", title: "Example", width: 190, sortable: true, cell: (r) => <span className="clip" title={r.id}>{r.id}</span> },
  ];
  if (page.groups) made.push({ key: "group", title: "Group", width: 110, sortable: true, cell: (r) => <span className="clip">{r.group}</span> });
  for (const q of page.columns) {
    const sides = page.b ? (["a", "b", "d"] as const) : (["a"] as const);
    const numeric = typeof page.a[q]?.find((v) => v !== null) !== "string";
    for (const side of sides) {
      if (side === "d" && (!numeric || q === "correct" || q === "predicted")) continue;
      made.push({
        key: `${side}:${q}`, title: q.replace(/_/g, " "), sub: { a: "A", b: "B", d: "B − A" }[side], width: 112, right: true, sortable: true,
        cell: (r) => <Shown row={r} quantity={q} side={side} />,
      });
    }
  }
  return made;
}

function Shown(props: { row: Row; quantity: string; side: "a" | "b" | "d" }) {
  const { page, at } = props.row;
  const [a, b] = [page.a[props.quantity]?.[at] ?? null, page.b?.[props.quantity]?.[at] ?? null];
  const value = props.side === "a" ? a : props.side === "b" ? b : a === null || b === null ? null : Number(b) - Number(a);
  if (value === null) return <Undefined reason="the model's output is not finite here" />;
  if (props.quantity === "correct") return <span className={value ? "" : "ne"}>{value ? "right" : "wrong"}</span>;
  if (typeof value === "string") return <>{value}</>;
  const text = number(value, 4);
  return <>{props.side === "d" && value > 0 ? `+${text}` : text}</>;
}
