// All models in one table, and the same as a plane of two of its columns.
import { useDeferredValue, useMemo, useState } from "react";
import { type Column as TableColumn, type Sort, Table, ordered } from "../parts/Table";
import { Choice, Gap, Loading, Note, Panel, Segments, Undefined, Value, Wait } from "../parts/basics";
import { Plane, type PlanePoint } from "../parts/Plane";
import { Vega } from "../parts/Vega";
import { DIRECTIONS, measure, number, plural, signed, splitName } from "../format";
import { useData } from "../api";
import { NoRuns, WithRun, runPath } from "../context";
import { address, change, useRoute } from "../route";
import type { BandEnds, Charts, ProblemView, Screen as ScreenData, ScreenCell, TableCell, VerdictLine } from "../api-types";
import { Rankings } from "./Rankings";

interface Col {
  metric: string;
  split: string;
  title: string;
  unit: string;
  direction: string;
  definition?: string;
  retrained?: BandEnds | null;
}
interface Cell {
  value: number | null;
  low: number | null;
  high: number | null;
  gap: number | null;
  distance: number | null;
  status: string;
  reason: string;
}
interface Row {
  run: string;
  problem: string;
  label: string;
  role: string;
  seeds: number;
  status: string;
  reason: string;
  equal: number;
  different: number;
  undecided: number;
  cells: (Cell | null)[];
}

export function Screen() {
  const { params } = useRoute();
  return params.scope === "all" ? <AllRuns /> : <OneRun />;
}

function Scope(props: { all: boolean }) {
  return (
    <Segments
      label="Scope"
      value={props.all ? "all" : "one"}
      options={[
        { value: "one", label: "One run" },
        { value: "all", label: "All runs" },
      ]}
      onChange={(v) => change({ scope: v === "all" ? "all" : "", sort: "" }, false)}
    />
  );
}

function OneRun() {
  return (
    <WithRun title="Screen">
      {({ run, view, problem }, picker) => <Problem run={run} problem={problem} picker={picker} untested={view.untested.length} />}
    </WithRun>
  );
}

const GROUPS = [
  { value: "results", label: "Main" },
  { value: "attacks", label: "Attacks" },
  { value: "further", label: "Further" },
  { value: "costs", label: "Costs" },
  { value: "across", label: "All seeds together" },
] as const;

function Problem(props: { run: string; problem: ProblemView; picker: React.ReactNode; untested: number }) {
  const { run, problem } = props;
  const { params } = useRoute();
  const present = GROUPS.filter((g) => problem.columns.some((c) => c.group === g.value));
  const group = present.find((g) => g.value === params.columns)?.value ?? present[0]?.value ?? "results";
  const places = problem.columns.map((c, i) => [c, i] as const).filter(([c]) => c.group === group);
  const columns: Col[] = places.map(([c]) => c);
  const rows: Row[] = useMemo(
    () =>
      problem.rows.map((r) => {
        const said = problem.verdicts.filter((v) => v.label === r.label);
        const count = (j: VerdictLine["judgement"]) => said.filter((v) => v.judgement === j).length;
        const first = r.cells.find((c) => c && c.status !== "ok" && c.status !== "not measured");
        const empty = r.cells.every((c) => c === null || c.value === null);
        return {
          run, problem: problem.name, label: r.label, role: r.role, seeds: r.seeds.length,
          status: empty ? (first?.status ?? "not measured") : "ok", reason: empty ? (first?.reason ?? "nothing was measured") : "",
          equal: count("no larger difference"), different: count("different"), undecided: count("undecided"),
          cells: places.map(([, i]) => cellOf(r.cells[i])),
        };
      }),
    [problem, group],
  );
  const charts = useData<Charts>(runPath(run, "/charts"));
  return (
    <>
      <div className="title">
        <h1>Screen</h1>
        <Scope all={false} />
        <p>
          {problem.scope ? `${problem.scope[0].toUpperCase()}${problem.scope.slice(1)}. ` : ""}
          {problem.claim}
        </p>
      </div>
      <div className="context">
        {props.picker}
        <Filter />
        <span className="grow" />
        <a className="button" href={address("contrast", { run, problem: problem.name })}>
          Contrast two models
        </a>
      </div>
      <Panel
        title="Models"
        tools={
          <Segments label="Columns" value={group} options={present} onChange={(v) => change({ columns: v, sort: "" })} />
        }
        caption="Means over seeds; the small number is the gap to the retrained models. The darker a cell, the farther it is from them; what is dotted has no value, for the reason that it gives when pointed at."
      >
        <Models columns={columns} rows={rows} all={false} />
      </Panel>
      <div className="two">
        <Pareto columns={columns} rows={rows} />
        <Verdicts problem={problem} />
      </div>
      <Claimed problem={problem} />
      <Rankings run={run} problem={problem} />
      <Wait of={charts} height={320}>
        {(found) => <ReportCharts charts={found} problem={problem.name} />}
      </Wait>
    </>
  );
}

/** What makers claim, beside what the measurements let stand. */
function Claimed(props: { problem: ProblemView }) {
  const { claims } = props.problem;
  if (!claims.length) return null;
  return (
    <Panel title="Claimed and found" caption="A claim is only ever lowered: what stands is the strongest one whose every requirement was met. The Attack page lists what supports and what breaks it.">
      <div className="scroll" tabIndex={0} role="region" aria-label="claims, table">
        <table className="plain">
          <thead>
            <tr>
              <th scope="col">Method</th>
              <th scope="col">Claimed</th>
              <th scope="col">What stands</th>
              <th scope="col">Residue</th>
              <th scope="col">In words</th>
            </tr>
          </thead>
          <tbody>
            {claims.map((c) => (
              <tr key={`${c.label}${c.claimed}`}>
                <td>{c.label}</td>
                <td>{c.claimed}</td>
                <td className={c.standing === c.claimed ? "eq" : "ne"}>{c.standing}</td>
                <td>{c.residue}</td>
                <td className="muted">{c.sentence}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

function ReportCharts(props: { charts: Charts; problem: string }) {
  const specs = Object.entries(props.charts.problems[props.problem] ?? {}).filter(([kind]) => ["costs", "membership", "losses"].includes(kind));
  if (!specs.length) return null;
  return (
    <div className="two">
      {specs.map(([kind, spec]) => (
        <Panel key={kind} title={String((spec as { description: string }).description)} caption={props.charts.captions[kind]}>
          <Vega spec={spec as Record<string, unknown>} name={`${props.problem}-${kind}`} />
        </Panel>
      ))}
    </div>
  );
}

function cellOf(cell: TableCell | null): Cell | null {
  return cell && { ...cell };
}

function AllRuns() {
  const found = useData<ScreenData>("/api/screen");
  const rows = useMemo(() => found.data && allRows(found.data), [found.data]);
  const drawn = useDeferredValue(rows, undefined); // thousands of points; the table goes first
  if (found.error) return <Note wrong>{found.error}</Note>;
  if (!found.data || !rows) return <Loading height={500} />;
  if (!rows.length && !Object.keys(found.data.unread).length) return <NoRuns />;
  return (
    <>
      <div className="title">
        <h1>Screen</h1>
        <Scope all />
        <p>
          {plural(new Set(rows.map((r) => r.run)).size, "run")}, {plural(rows.length, "model row")}.
        </p>
      </div>
      <div className="context">
        <Filter />
      </div>
      {Object.entries(found.data.unread).map(([run, reason]) => (
        <Note key={run} wrong>
          Run '{run}': {reason}
        </Note>
      ))}
      <Panel
        title="Models of all runs"
        caption="Means over seeds; the small number is the gap to the retrained models of the same run. Cells are tinted by the size of the gap within their column."
      >
        <Models columns={found.data.columns} rows={rows} all />
      </Panel>
      {drawn ? <Pareto columns={found.data.columns} rows={drawn} /> : <Loading height={440} />}
    </>
  );
}

function allRows(data: ScreenData): Row[] {
  const most = data.columns.map((_, i) => Math.max(0, ...data.rows.map((r) => Math.abs(r.cells[i]?.gap ?? 0))));
  return data.rows.map((r) => ({
    ...r,
    cells: r.cells.map((c: ScreenCell | null, i) =>
      c === null
        ? null
        : {
            value: c.value ?? null, low: c.low ?? null, high: c.high ?? null, gap: r.role === "retrained" ? null : (c.gap ?? null),
            distance: c.gap === null || c.gap === undefined || r.role === "retrained" || !most[i] ? null : Math.abs(c.gap) / most[i],
            status: c.status ?? "ok", reason: c.reason ?? "",
          },
    ),
  }));
}

function Filter() {
  const { params } = useRoute();
  return (
    <>
      <label className="field">
        Filter
        <input type="search" value={params.filter ?? ""} placeholder="method, run, problem" onChange={(e) => change({ filter: e.target.value })} />
      </label>
      <Choice
        label="Verdicts"
        value={params.verdict ?? ""}
        options={[
          { value: "", label: "any" },
          { value: "equal", label: "no difference found" },
          { value: "different", label: "some difference" },
          { value: "undecided", label: "some undecided" },
        ]}
        onChange={(v) => change({ verdict: v })}
      />
    </>
  );
}

/** The rows that the filter keeps. */
function useKept(rows: Row[]): Row[] {
  const { params } = useRoute();
  const words = (params.filter ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  return useMemo(
    () =>
      rows.filter((r) => {
        const text = `${r.run} ${r.problem} ${r.label} ${r.role}`.toLowerCase();
        if (!words.every((w) => text.includes(w))) return false;
        if (params.verdict === "equal") return r.equal > 0 && r.different === 0 && r.undecided === 0;
        if (params.verdict === "different") return r.different > 0;
        return params.verdict !== "undecided" || r.undecided > 0;
      }),
    [rows, words.join(" "), params.verdict],
  );
}

function Models(props: { columns: Col[]; rows: Row[]; all: boolean }) {
  const { params } = useRoute();
  const kept = useKept(props.rows);
  const [key, way] = (params.sort ?? "").split("!");
  const sort: Sort = { key, descending: way === "desc" };
  const shown = useMemo(() => {
    if (!sort.key) return kept;
    const i = props.columns.findIndex((c) => `${c.metric}|${c.split}` === sort.key);
    const by = (r: Row) =>
      i >= 0 ? (r.cells[i]?.value ?? null) : sort.key === "label" ? r.label : sort.key === "run" ? r.run : sort.key === "problem" ? r.problem : r.equal - r.different;
    return ordered(kept, by, sort.descending);
  }, [kept, sort.key, sort.descending, props.columns]);
  const columns: TableColumn<Row>[] = [
    {
      key: "label", title: "Method", sub: "parameters that differ from defaults", width: 240, sortable: true,
      cell: (r) => (
        <span className="clip" title={r.label}>
          {r.role === "unlearned" ? r.label : <b style={{ fontWeight: 550, color: `var(--${r.role})` }}>{r.label}</b>}
        </span>
      ),
    },
  ];
  if (props.all)
    columns.push(
      {
        key: "run", title: "Run", width: 150, sortable: true,
        cell: (r) => (
          <a className="clip" href={address("screen", { run: r.run, problem: r.problem })}>
            {r.run}
          </a>
        ),
      },
      { key: "problem", title: "Problem", width: 150, sortable: true, cell: (r) => <span className="clip">{r.problem}</span> },
    );
  columns.push({
    key: "verdict", title: "Verdicts", sub: "≡ none  ≠ some  ? undecided", hint: "equivalence tests against the retrained models", width: 180, sortable: true,
    cell: (r) => <Tally row={r} />,
  });
  props.columns.forEach((c, i) =>
    columns.push({
      key: `${c.metric}|${c.split}`,
      title: c.title,
      sub: `${splitName(c.split)} ${DIRECTIONS[c.direction]?.[0] ?? ""}`,
      hint: `${c.title}, ${splitName(c.split)}; ${c.unit}; ${DIRECTIONS[c.direction]?.[1] ?? ""}${c.definition ? `\n\n${c.definition}` : ""}`,
      width: 168, right: true, sortable: true,
      cell: (r) => <Measured cell={r.cells[i]} column={c} row={r} />,
    }),
  );
  if (!shown.length) return <Note>No model matches the filter.</Note>;
  return (
    <Table
      label="models"
      columns={columns}
      count={shown.length}
      row={(i) => shown[i]}
      rowKey={(r) => `${r.run}|${r.problem}|${r.label}`}
      sort={sort}
      onSort={(s) => change({ sort: `${s.key}!${s.descending ? "desc" : "asc"}` })}
    />
  );
}

function Tally(props: { row: Row }) {
  const { equal, different, undecided, role, status, reason } = props.row;
  if (status !== "ok") return <Undefined reason={reason} status={status} />;
  if (role === "retrained") return <span className="muted">the yardstick</span>;
  if (equal + different + undecided === 0) return <span className="muted">not tested</span>;
  return (
    <span className="verdict">
      <b className="eq" title="no difference larger than the margin">≡ {equal}</b>
      <b className="ne" title="different from retraining">≠ {different}</b>
      <b className="un" title="undecided">? {undecided}</b>
    </span>
  );
}

function Measured(props: { cell: Cell | null; column: Col; row: Row }) {
  const { cell, column } = props;
  if (cell === null || cell.status === "not measured") return <span className="muted">–</span>;
  if (cell.value === null) return <Undefined reason={cell.reason} status={cell.status} />;
  const half = cell.low !== null && cell.high !== null ? `95 % interval ${measure(cell.low, column.unit)} to ${measure(cell.high, column.unit)}` : "no interval";
  const tint = cell.distance === null ? undefined : `color-mix(in srgb, var(--target) ${Math.round(34 * cell.distance)}%, transparent)`;
  return (
    <span className="cell" style={{ background: tint }} title={`${half}${cell.reason ? `; ${cell.reason}` : ""}`}>
      <Value value={cell.value} unit={column.unit} />
      <span className="whisker">{spread(cell, column.unit)}</span>
      <Gap gap={cell.gap} unit={column.unit} />
    </span>
  );
}

/** ± half the interval, or its ends where it is not symmetric: an interval of shares ends at 0 and 100 %. */
function spread(cell: Cell, unit: string): string {
  if (cell.low === null || cell.high === null || cell.value === null) return "";
  const shown = (v: number) => (unit === "share" ? (100 * v).toFixed(1) : number(v, 2));
  const [under, over] = [cell.value - cell.low, cell.high - cell.value];
  if (Math.abs(under - over) <= 0.02 * (under + over)) return `±${shown((under + over) / 2)}`;
  return `${shown(cell.low)}–${shown(cell.high)}`;
}

function Pareto(props: { columns: Col[]; rows: Row[] }) {
  const { params } = useRoute();
  const kept = useKept(props.rows);
  const [lit, setLit] = useState<string>();
  const keyOf = (c: Col) => `${c.metric}|${c.split}`;
  const find = (key: string, fallback: [string, string][]) =>
    Math.max(
      0,
      props.columns.findIndex((c) => keyOf(c) === key) >= 0
        ? props.columns.findIndex((c) => keyOf(c) === key)
        : (fallback.map(([m, s]) => props.columns.findIndex((c) => c.metric === m && c.split === s)).find((i) => i >= 0) ?? 0),
    );
  const x = find(params.x ?? "", [["accuracy", "test"], ["mae", "test"], ["probability", "retain"]]);
  const y = find(params.y ?? "", [["accuracy", "forget"], ["mae", "forget"], ["probability", "forget"]]);
  if (!props.columns.length) return null;
  const options = props.columns.map((c) => ({ value: keyOf(c), label: `${c.title}, ${splitName(c.split)}` }));
  const points: PlanePoint[] = kept.flatMap((r) => {
    const [a, b] = [r.cells[x], r.cells[y]];
    if (a?.value === null || a?.value === undefined || b?.value === null || b?.value === undefined) return [];
    return [{ id: `${r.run}|${r.problem}|${r.label}`, label: r.label, role: r.role, x: a.value, y: b.value, xs: [a.low ?? a.value, a.high ?? a.value], ys: [b.low ?? b.value, b.high ?? b.value] }];
  });
  const left = kept.length - points.length;
  const boxed = props.columns[x].retrained && props.columns[y].retrained;
  const of = (i: number, v: number) => measure(v, props.columns[i].unit);
  return (
    <Panel
      title="Two measures against each other"
      tools={
        <>
          <Choice label="Across" value={keyOf(props.columns[x])} options={options} onChange={(v) => change({ x: v })} />
          <Choice label="Up" value={keyOf(props.columns[y])} options={options} onChange={(v) => change({ y: v })} />
        </>
      }
      caption={`${boxed ? "The gray box spans the retrained models, in the paler one 95 % of further ones would lie: forgetting should arrive there." : ""}${left ? ` ${plural(left, "row")} without both values ${left === 1 ? "is" : "are"} not drawn.` : ""}`}
    >
      <Plane
        points={points}
        box={[props.columns[x].retrained ?? null, props.columns[y].retrained ?? null]}
        names={[options[x].label, options[y].label]}
        format={[(v) => of(x, v), (v) => of(y, v)]}
        lit={lit}
        onHover={setLit}
      />
    </Panel>
  );
}

function Verdicts(props: { problem: ProblemView }) {
  const { problem } = props;
  const unit = new Map(problem.columns.map((c) => [`${c.metric}|${c.split}`, c]));
  if (!problem.verdicts.length && !problem.claims.length)
    return (
      <Panel title="Verdicts">
        <Note>No equivalence test was made: there are no retrained models, or a single seed.</Note>
      </Panel>
    );
  const labels = [...new Set(problem.verdicts.map((v) => v.label))];
  return (
    <Panel title="Verdicts" caption="Equivalence tests against the retrained models: the interval of the difference must lie inside the margin. No test can show that something is gone.">
      <div className="scroll" style={{ maxHeight: 420 }} tabIndex={0} role="region" aria-label="verdicts, table">
        <table className="plain">
          <thead>
            <tr>
              <th scope="col">Method</th>
              <th scope="col">Property</th>
              <th scope="col">Judgement</th>
              <th scope="col" className="n">Difference</th>
              <th scope="col" className="n">Margin</th>
            </tr>
          </thead>
          <tbody>
            {labels.flatMap((label) =>
              problem.verdicts
                .filter((v) => v.label === label)
                .map((v, i) => {
                  const c = unit.get(`${v.metric}|${v.split}`);
                  const sign = { "no larger difference": ["≡", "eq"], different: ["≠", "ne"], undecided: ["?", "un"] }[v.judgement];
                  return (
                    <tr key={`${label}${v.metric}${v.split}`} title={v.sentence}>
                      <td>{i === 0 ? label : ""}</td>
                      <td>
                        {c?.title ?? v.metric}, {splitName(v.split)}
                      </td>
                      <td className={sign[1]}>
                        {sign[0]} {v.judgement}
                        {v.more_seeds ? <span className="muted">, {v.more_seeds} more seeds</span> : null}
                      </td>
                      <td className="n">{v.difference === null ? "–" : signed(v.difference, c?.unit ?? "")}</td>
                      <td className="n">{measure(v.margin, c?.unit ?? "")}</td>
                    </tr>
                  );
                }),
            )}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}
