// Two models beside each other; what is pointed at in one view is marked in the others.
import { useCallback, useMemo, useState } from "react";
import { Bars } from "../parts/Bars";
import { Lines } from "../parts/Lines";
import { MatrixView } from "../parts/MatrixView";
import { COLOR, Choice, Empty, Loading, Note, Panel, SERIES, Segments, Swatch, Wait } from "../parts/basics";
import { type Dot, Scatter, WHOLE, type Window } from "../parts/Scatter";
import { natural, number, plural, splitName } from "../format";
import { query, useData } from "../api";
import { type Chosen, WithRun, firstPair, runPath, shownModel, useSession } from "../context";
import { change, useRoute } from "../route";
import type { Contrast as ContrastData, Embedding, Residuals } from "../api-types";
import { Answers } from "./Answers";
import { Examples } from "./Examples";
import { Images } from "./Images";

export interface Pair {
  run: string;
  problem: string;
  a: string;
  b: string;
  split: string;
}

export function Contrast() {
  return <WithRun title="Contrast">{(chosen, picker) => <Two chosen={chosen} picker={picker} />}</WithRun>;
}

function Two(props: { chosen: Chosen; picker: React.ReactNode }) {
  const { run, problem, view } = props.chosen;
  const { params } = useRoute();
  const [firstA, firstB] = firstPair(problem);
  const a = problem.models.includes(params.a) ? params.a : firstA;
  const b = problem.models.includes(params.b) ? params.b : firstB;
  const split = params.split || (problem.counts.test && problem.family !== "causal_lm" ? "test" : "forget");
  const found = useData<ContrastData>(a ? query(runPath(run, "/contrast"), { problem: problem.name, a, b, split }) : undefined);
  const options = problem.models.map((m) => ({ value: m, label: shownModel(m) }));
  if (!a) return <Empty title="No model was made">{<p>Every method of this problem failed or does not fit; the Report page has the reasons.</p>}</Empty>;
  const splits = found.last?.splits.length ? found.last.splits : [split];
  const pair: Pair = { run, problem: problem.name, a, b, split };
  return (
    <>
      <div className="title">
        <h1>Contrast</h1>
        <p>What two models do with the same examples. Point at a class, a layer or an example in one view to see it in the others.</p>
      </div>
      <div className="context">
        {props.picker}
        <Choice label="Model A" value={a} options={options} onChange={(v) => change({ a: v })} />
        <button type="button" title="exchange A and B" aria-label="exchange A and B" onClick={() => change({ a: b, b: a })}>
          ⇄
        </button>
        <Choice label="Model B" value={b} options={options} onChange={(v) => change({ b: v })} />
        <Choice label="Examples" value={split} options={[...new Set([...splits, split])].map((s) => ({ value: s, label: splitName(s) }))} onChange={(v) => change({ split: v })} />
      </div>
      {view.evidence && <Note>{view.evidence}.</Note>}
      <Wait of={found} height={480}>
        {(data) => <Views data={data} pair={pair} />}
      </Wait>
    </>
  );
}

export function Names(props: { pair: Pair }) {
  return (
    <div className="legend">
      <span>
        <Swatch color={COLOR.a} /> A: {shownModel(props.pair.a)}
      </span>
      <span>
        <Swatch color={COLOR.b} /> B: {shownModel(props.pair.b)}
      </span>
    </div>
  );
}

function Views(props: { data: ContrastData; pair: Pair }) {
  const { data, pair } = props;
  const { params } = useRoute();
  const [group, setGroup] = useState<string>();
  const [id, setId] = useState<string>();
  const [layer, setLayer] = useState<number>();
  const hover = useCallback((found: string | undefined) => setId(found), []);
  const metric = data.bars.find((m) => m.metric === params.metric) ?? data.bars[0];
  const difference = params.bars === "difference";
  return (
    <>
      <div className="two">
        <Panel
          title={metric ? `${metric.title} by group` : "By group"}
          tools={
            metric && (
              <>
                <Choice label="Measure" value={metric.metric} options={data.bars.map((m) => ({ value: m.metric, label: m.title }))} onChange={(v) => change({ metric: v })} />
                <Segments
                  label="Bars"
                  value={difference ? "difference" : "both"}
                  options={[
                    { value: "both", label: "Both" },
                    { value: "difference", label: "B − A" },
                  ]}
                  onChange={(v) => change({ bars: v === "difference" ? v : "" })}
                />
              </>
            )
          }
          caption={
            metric &&
            [
              metric.retrained.models > 0 && !difference && `The black tick is ${metric.retrained.models > 1 ? "the mean of the retrained models" : "the retrained model"}.`,
              metric.retrained.models > 1 && !difference && "The gray behind the bars spans them, in the paler gray 95 % of further ones would lie.",
              "The number is B minus A.",
            ]
              .filter(Boolean)
              .join(" ")
          }
        >
          {metric ? (
            <>
              <Bars legend={<Names pair={pair} />} bars={metric} difference={difference} names={["A", "B"]} lit={group} onHover={setGroup} />
            </>
          ) : (
            <Note>{data.missing.bars}.</Note>
          )}
        </Panel>
        <Layers data={data} pair={pair} lit={layer} onHover={setLayer} />
      </div>
      {data.matrices && (
        <Panel title="Predictions" caption="Rows are true classes, columns what the model says; the shade is the share of the row, pointing at a cell gives the mean confidence.">
          <div className="sides">
            {data.matrices.map((m, i) => (
              <div key={i} className="panel">
                <span className="side-name">
                  <Swatch color={i ? COLOR.b : COLOR.a} /> {i ? "B" : "A"}: {shownModel(i ? pair.b : pair.a)}
                </span>
                <MatrixView matrix={m} color={i ? COLOR.b : COLOR.a} name={i ? pair.b : pair.a} lit={group} onHover={setGroup} />
              </div>
            ))}
          </div>
        </Panel>
      )}
      {data.missing.matrices && <Note>Predictions: {data.missing.matrices}.</Note>}
      {data.residuals && <ResidualPlots residuals={data.residuals} pair={pair} lit={id} onHover={hover} />}
      {data.missing.residuals && <Note>Residuals: {data.missing.residuals}.</Note>}
      {data.texts && <Answers pair={pair} />}
      {data.images && <Images key={pair.split} pair={pair} />}
      <EmbeddingView data={data} pair={pair} lit={id} onHover={hover} group={group} onGroup={setGroup} />
      {data.n !== null ? (
        <Examples pair={pair} lit={id} onHover={hover} />
      ) : (
        <Panel title="Examples">
          <Note>{data.missing.examples}.</Note>
        </Panel>
      )}
    </>
  );
}

function Layers(props: { data: ContrastData; pair: Pair; lit?: number; onHover: (i: number | undefined) => void }) {
  const { data } = props;
  const layers = useMemo(() => [...new Set([...data.layers, ...data.layer_bands].flatMap((l) => l.layers))].sort(natural), [data]);
  const shared = layers.length > 1 && layers.every((l) => l.startsWith(`${layers[0].split(".")[0]}.`)) ? layers[0].split(".")[0].length + 1 : 0;
  const { pair } = props;
  const { params } = useRoute();
  const others = data.layer_bands.map((b) => b.name.replace("retrained to ", ""));
  const other = others.includes(params.band) ? params.band : (others.at(-1) ?? "");
  const color = (name: string) => (name.startsWith(`${pair.a} to ${pair.b}`) ? "var(--ink)" : name.startsWith(`${pair.a} `) ? COLOR.a : COLOR.b);
  return (
    <Panel
      title="Similarity of layers"
      tools={others.length > 1 && <Segments label="Band" value={other} options={others.map((o) => ({ value: o, label: `Band to ${o}`, title: `how alike retrained models and the ${o} are` }))} onChange={(v) => change({ band: v })} />}
      caption={`Linear CKA, 1 = the same up to rotation and scale. Solid: to the retrained models and to each other; dashed: to the target.${other ? ` The gray band spans the retrained models' similarity to ${other === "target" ? "the target" : "one another"}, in the paler one 95 % of further ones would lie.` : ""} A layer that stays like the target's while the output changes points at suppression.`}
    >
      {data.layers.length ? (
        <Lines
          name="layers"
          title="CKA"
          over="layer, by name"
          labels={layers.map((l) => l.slice(shared))}
          range={[0, 1]}
          lit={props.lit}
          onHover={props.onHover}
          bands={data.layer_bands
            .filter((b) => b.name.endsWith(` ${other}`))
            .map((b) => ({ name: b.name, at: b.layers.map((k) => layers.indexOf(k)), band: b }))}
          lines={data.layers.map((l) => ({
            name: l.name.replace(pair.a, "A").replace(pair.b, "B"),
            color: color(l.name),
            dashed: l.name.endsWith("to target"),
            at: l.layers.map((k) => layers.indexOf(k)),
            values: l.values,
          }))}
        />
      ) : (
        <Note>{data.missing.layers}.</Note>
      )}
    </Panel>
  );
}

function extentOf(points: [number, number][]): [number, number, number, number] {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [x, y] of points) [x0, x1, y0, y1] = [Math.min(x0, x), Math.max(x1, x), Math.min(y0, y), Math.max(y1, y)];
  return [x0, x1, y0, y1];
}

function EmbeddingView(props: { data: ContrastData; pair: Pair; lit?: string; onHover: (id: string | undefined) => void; group?: string; onGroup: (group: string | undefined) => void }) {
  const { data, pair } = props;
  const { params } = useRoute();
  const { umap } = useSession();
  const layers = data.embeddable;
  const layer = layers.includes(params.layer) ? params.layer : (layers.filter((l) => !/head|fc|classifier/.test(l)).at(-1) ?? layers[0]);
  const method = params.embedding === "umap" && umap ? "umap" : "pca";
  const aligned = params.aligned !== "no";
  const path = layer ? query(runPath(pair.run, "/embedding"), { ...pair, run: undefined, layer, method, aligned: aligned ? undefined : "false" }) : undefined;
  const found = useData<Embedding>(path);
  if (!layer)
    return (
      <Panel title="Representations">
        <Note>{data.missing.embedding ?? "no features were collected"}.</Note>
      </Panel>
    );
  return (
    <Panel
      title="Representations"
      tools={
        <>
          <Choice label="Layer" value={layer} options={layers} onChange={(v) => change({ layer: v })} />
          {umap && <Choice label="Projection" value={method} options={["pca", "umap"]} onChange={(v) => change({ embedding: v === "pca" ? "" : v })} />}
          <Choice
            label="Color"
            value={params.color ?? "group"}
            options={[
              { value: "group", label: "group" },
              { value: "outcome", label: "who is right" },
            ]}
            onChange={(v) => change({ color: v === "group" ? "" : v })}
          />
          <label className="row small">
            <input type="checkbox" checked={aligned} onChange={(e) => change({ aligned: e.target.checked ? "" : "no" })} /> align B to A
          </label>
        </>
      }
    >
      <Wait of={found} height={380}>
        {(embedding) => <Clouds embedding={embedding} {...props} byOutcome={params.color === "outcome"} />}
      </Wait>
    </Panel>
  );
}

const OUTCOMES: [string, string][] = [
  ["both right", "var(--retrained)"],
  ["only A right", COLOR.a],
  ["only B right", COLOR.b],
  ["both wrong", "var(--target)"],
];

function Clouds(props: { embedding: Embedding; pair: Pair; lit?: string; onHover: (id: string | undefined) => void; group?: string; onGroup: (group: string | undefined) => void; byOutcome: boolean }) {
  const { embedding, pair } = props;
  const [window, setWindow] = useState<Window>(WHOLE);
  const groups = useMemo(() => [...new Set(embedding.points.map((p) => p.group ?? ""))].sort(natural), [embedding]);
  const judged = embedding.points[0]?.correct_a !== null;
  const byOutcome = props.byOutcome && judged;
  const outcome = (p: Embedding["points"][0]) => (p.correct_a ? (p.correct_b ? 0 : 1) : p.correct_b ? 2 : 3);
  const color = (p: Embedding["points"][0]) => (byOutcome ? OUTCOMES[outcome(p)][1] : SERIES[Math.max(0, groups.indexOf(p.group ?? "")) % SERIES.length]);
  const dots = (side: "a" | "b"): Dot[] =>
    embedding.points.map((p) => ({
      id: p.id, x: p[side][0], y: p[side][1], color: color(p),
      ring: !byOutcome && groups.indexOf(p.group ?? "") >= SERIES.length,
      hollow: (side === "a" ? p.correct_a : p.correct_b) === false,
      faded: props.group !== undefined && p.group !== props.group,
    }));
  const [a, b] = useMemo(() => [dots("a"), dots("b")], [embedding, byOutcome, props.group]);
  const extent = useMemo(() => extentOf(embedding.points.flatMap((p) => [p.a, p.b])), [embedding]);
  const known = useMemo(() => new Map(embedding.points.map((p) => [p.id, p])), [embedding]);
  const describe = (id: string) => {
    const p = known.get(id);
    return p ? `${id}${p.group ? `, group ${p.group}` : ""}${judged ? `; A ${p.correct_a ? "right" : "wrong"}, B ${p.correct_b ? "right" : "wrong"}` : ""}` : id;
  };
  const shown = (side: Dot[], name: string, model: string, tint: string) => (
    <div className="panel">
      <span className="side-name">
        <Swatch color={tint} /> {name}: {shownModel(model)}
      </span>
      <Scatter dots={side} extent={extent} lit={props.lit} onHover={props.onHover} window={window} onWindow={setWindow} square label={`representations of ${model}`} describe={describe} />
    </div>
  );
  const variance = embedding.explained ? ` The axes carry ${embedding.explained.map((v) => `${number(100 * v, 2)} %`).join(" and ")} of the variance.` : "";
  return (
    <>
      <div className="legend">
        {byOutcome
          ? OUTCOMES.map(([name, tint]) => (
              <span key={name}>
                <Swatch color={tint} /> {name}
              </span>
            ))
          : groups.slice(0, 16).map((g, i) => (
              <button key={g} type="button" onMouseEnter={() => props.onGroup(g)} onMouseLeave={() => props.onGroup(undefined)} onFocus={() => props.onGroup(g)} onBlur={() => props.onGroup(undefined)}>
                <Swatch color={SERIES[i % SERIES.length]} ring={i >= SERIES.length} /> {g || "examples"}
              </button>
            ))}
        {judged && <span>× wrong</span>}
        <span className="grow" />
        <span className="row">
          <button type="button" className="plain" aria-label="zoom in" onClick={() => setWindow({ ...window, zoom: Math.min(32, window.zoom * 1.4) })}>+</button>
          <button type="button" className="plain" aria-label="zoom out" onClick={() => setWindow({ ...window, zoom: Math.max(0.6, window.zoom / 1.4) })}>−</button>
          <button type="button" className="plain" onClick={() => setWindow(WHOLE)}>whole</button>
        </span>
      </div>
      <div className="sides">
        {shown(a, "A", pair.a, COLOR.a)}
        {shown(b, "B", pair.b, COLOR.b)}
      </div>
      <p className="caption">
        Both models are projected together, so positions can be compared{embedding.aligned ? "; B's features are first turned onto A's, for models number their units differently" : ""}.
        {variance} CKA here: {embedding.similarity === null ? "undefined, the features do not vary" : number(embedding.similarity, 3)}.
        {embedding.points.length < embedding.n ? ` ${plural(embedding.points.length, "example")} of ${embedding.n.toLocaleString("en")}, evenly spaced.` : ""} Drag to move.
      </p>
    </>
  );
}

function ResidualPlots(props: { residuals: Residuals[]; pair: Pair; lit?: string; onHover: (id: string | undefined) => void }) {
  const [window, setWindow] = useState<Window>(WHOLE);
  const { residuals, pair } = props;
  const dots = useMemo(
    () =>
      residuals.map((r, side) =>
        r.ids.flatMap((id, i): Dot[] => {
          const predicted = r.predicted[i];
          return predicted === null ? [] : [{ id, x: r.target[i], y: predicted, color: side ? COLOR.b : COLOR.a }];
        }),
      ),
    [residuals],
  );
  const values = dots.flat().flatMap((d) => [d.x, d.y]);
  const extent: [number, number, number, number] = [Math.min(...values), Math.max(...values), Math.min(...values), Math.max(...values)];
  const at = (side: number, id: string) => residuals[side].ids.indexOf(id);
  const describe = (id: string) => {
    const i = at(0, id);
    const said = (side: number) => number(residuals[side].predicted[at(side, id)] ?? Number.NaN, 4);
    return `${id}: true ${number(residuals[0].target[i])}, A ${said(0)}, B ${said(1)}`;
  };
  const lost = residuals.map((r) => r.predicted.filter((v) => v === null).length);
  return (
    <Panel title="Predictions against the truth" caption={`On the dashed line the prediction is right; the distance from it is the residual.${lost.some(Boolean) ? ` Not drawn, because not finite: ${lost[0]} of A, ${lost[1]} of B.` : ""}`}>
      <div className="sides">
        {dots.map((side, i) => (
          <div key={i} className="panel">
            <span className="side-name">
              <Swatch color={i ? COLOR.b : COLOR.a} /> {i ? "B" : "A"}: {shownModel(i ? pair.b : pair.a)}
            </span>
            {values.length ? (
              <Scatter dots={side} extent={extent} lit={props.lit} onHover={props.onHover} window={window} onWindow={setWindow} diagonal label={`predictions of ${i ? pair.b : pair.a}`} describe={describe} axes={["true value", "predicted value"]} />
            ) : (
              <Loading />
            )}
          </div>
        ))}
      </div>
    </Panel>
  );
}
