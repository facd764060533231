// What an attacker sees of a model: where the forgotten rows lie, what a threshold gives away, what effort brings back.
import { useEffect, useMemo, useState } from "react";
import { type Curve, Distribution } from "../parts/Distribution";
import { Lines } from "../parts/Lines";
import { COLOR, Choice, Empty, Note, Panel, Segments, Undefined, Value, Wait } from "../parts/basics";
import { Roc, area, roc } from "../parts/Roc";
import { below, upTo } from "../parts/scale";
import { measure, number, plural, signed, splitName } from "../format";
import { query, useData } from "../api";
import { type Chosen, WithRun, firstPair, runPath, shownModel } from "../context";
import { change, useRoute } from "../route";
import type { AttackScore, Attacker, Comparison, CurveScore, ProblemView, Separation, WorstCase } from "../api-types";
import { TranscriptsView } from "./Transcripts";

export function Attack() {
  return <WithRun title="Attack">{(chosen, picker) => <Attacked chosen={chosen} picker={picker} />}</WithRun>;
}

function Attacked(props: { chosen: Chosen; picker: React.ReactNode }) {
  const { run, problem, view } = props.chosen;
  const { params } = useRoute();
  const model = problem.models.includes(params.model) ? params.model : problem.models.includes(params.a) ? params.a : firstPair(problem)[0];
  const statistic = params.statistic || "loss";
  const found = useData<Separation>(model ? query(runPath(run, "/separation"), { problem: problem.name, model, statistic }) : undefined);
  if (!model) return <Empty title="No model was made"><p>Every method of this problem failed or does not fit.</p></Empty>;
  return (
    <>
      <div className="title">
        <h1>Attack</h1>
        <p>An attack that fails proves little; one that succeeds where it fails on retrained models is a finding.</p>
      </div>
      <div className="context">
        {props.picker}
        <Choice label="Model" value={model} options={problem.models.map((m) => ({ value: m, label: shownModel(m) }))} onChange={(v) => change({ model: v, at: "" })} />
        {found.last && (
          <Choice
            label="Statistic"
            value={found.last.statistics.includes(statistic) ? statistic : found.last.statistic}
            options={found.last.statistics.map((s) => ({ value: s, label: s.replace(/_/g, " ") }))}
            onChange={(v) => change({ statistic: v, at: "" })}
          />
        )}
        <Worst run={run} problem={problem.name} model={model} available={!view.evidence} />
      </div>
      {view.evidence ? (
        <Note>{view.evidence}.</Note>
      ) : (
        <Wait of={found} height={420}>
          {(data) => <Threshold key={`${run}|${problem.name}|${model}|${data.statistic}`} data={data} model={model} />}
        </Wait>
      )}
      <Curves problem={problem} model={model} />
      <Claims problem={problem} model={model} />
      <Recorded problem={problem} model={model} />
      <TranscriptsView run={run} problem={problem.name} model={model} attacks={problem.transcripts[model] ?? []} />
    </>
  );
}

function Worst(props: { run: string; problem: string; model: string; available: boolean }) {
  const [asked, setAsked] = useState("");
  const path = asked && props.available ? query(runPath(props.run, "/worst-case"), { problem: props.problem, model: props.model }) : undefined;
  const found = useData<WorstCase>(asked === props.model ? path : undefined);
  useEffect(() => {
    if (!found.data) return;
    const { statistic, comparison } = found.data;
    change({ statistic, at: String(comparison.threshold), against: "retrained" });
    setAsked("");
  }, [found.data]);
  if (!props.available) return null;
  return (
    <>
      <button type="button" title="the statistic, retrained model and threshold that tell this model from a retrained one best" onClick={() => setAsked(props.model)}>
        Worst case
      </button>
      {found.error && <span className="small ne">{found.error}</span>}
    </>
  );
}

function Threshold(props: { data: Separation; model: string }) {
  const { data } = props;
  const { params } = useRoute();
  const hasAttackers = data.attackers.length > 0;
  const against = params.against === "retrained" || !hasAttackers ? "retrained" : "membership";
  return (
    <>
      <Panel
        title={against === "membership" ? "Who was trained on?" : "Which model is this?"}
        tools={
          <Segments
            label="Question"
            value={against}
            options={[
              { value: "membership", label: "Members and non-members", title: "forget rows against rows that were never trained on" },
              { value: "retrained", label: "Against retrained", title: "the same forget rows in this model and in a retrained one" },
            ]}
            onChange={(v) => change({ against: v === "retrained" ? v : "", at: "" })}
          />
        }
      >
        {against === "membership" ? <Membership data={data} model={props.model} /> : <AgainstRetrained data={data} model={props.model} />}
      </Panel>
    </>
  );
}

function useThreshold(start: number): [number, (v: number) => void, boolean] {
  const { params } = useRoute();
  const given = params.at ? Number(params.at) : Number.NaN;
  const value = Number.isFinite(given) ? given : start;
  return [value, (v) => change({ at: String(v) }), Number.isFinite(given)];
}

const percent = (v: number) => `${(100 * v).toFixed(1)} %`;

function Membership(props: { data: Separation; model: string }) {
  const { data } = props;
  const { params } = useRoute();
  const attacker: Attacker = data.attackers.find((x) => x.kind === params.attacker) ?? data.attackers[0];
  const [at, setAt, moved] = useThreshold(attacker.threshold);
  const [log, setLog] = useState(true);
  const sample = (role: string) => data.samples.find((s) => s.role === role)?.values ?? [];
  const curves: Curve[] = useMemo(
    () => [
      { name: "forget set", color: COLOR.forget, values: attacker.asked.values },
      { name: "retain set", color: COLOR.retain, values: sample("retain") },
      { name: "holdout", color: COLOR.holdout, values: sample("holdout") },
      ...(data.density.models ? [{ name: `forget set, retrained${data.density.models > 1 ? ", mean" : ""}`, color: COLOR.retrained, shares: data.density.mean, dashed: true }] : []),
    ],
    [data, attacker],
  );
  const member = (values: number[]) => (attacker.members_below ? below(values, at) : values.length - upTo(values, at)) / Math.max(1, values.length);
  const [tpr, fpr] = [member(attacker.asked.values), member(attacker.matched.values)];
  const points = useMemo(() => roc(attacker.asked.values, attacker.matched.values, attacker.members_below), [attacker]);
  const auc = area(points);
  const side = attacker.members_below ? ["member", "non-member"] : ["non-member", "member"];
  const thinned = attacker.asked.n > attacker.asked.values.length || attacker.matched.n > attacker.matched.values.length;
  return (
    <>
      <div className="row">
        <Choice label="Attacker" value={attacker.kind} options={data.attackers.map((x) => ({ value: x.kind, label: x.metric }))} onChange={(v) => change({ attacker: v, at: "" })} />
        <button type="button" disabled={!moved} onClick={() => change({ at: "" })}>
          Attacker's own threshold
        </button>
        <button
          type="button"
          onClick={() => {
            const best = bestThreshold(attacker);
            setAt(best);
          }}
        >
          Most success
        </button>
      </div>
      <div className="two">
        <div className="panel">
          <Distribution curves={curves} edges={data.edges} log={data.log} band={data.density} unit={`${data.statistic.replace(/_/g, " ")} (${data.unit})`} threshold={at} onThreshold={setAt} below={side[0]} above={side[1]} name={`attack-${data.statistic}`} />
          <dl className="facts" aria-live="polite">
            <Fact name="Threshold" id="threshold">{number(at, 4)}</Fact>
            <Fact name="Forget rows called members" id="tpr">{percent(tpr)}</Fact>
            <Fact name="called non-members" id="non-members">{percent(1 - tpr)}</Fact>
            <Fact name="Non-members called members" id="fpr">{percent(fpr)}</Fact>
            <Fact name="Advantage" id="advantage">{number(tpr - fpr, 3)}</Fact>
            <Fact name="AUC" id="auc">{auc.toFixed(4)}</Fact>
          </dl>
          <table className="plain">
            <thead>
              <tr>
                <th scope="col">In scores.json</th>
                <th scope="col" className="n">value</th>
                <th scope="col" className="n">interval</th>
                <th scope="col" className="n">retrained</th>
                <th scope="col" className="n">gap</th>
              </tr>
            </thead>
            <tbody>
              {attacker.auc && <ScoreRow name="AUC" score={attacker.auc} id="recorded-auc" />}
              {attacker.efficacy && <ScoreRow name="called non-members, attacker's threshold" score={attacker.efficacy} id="recorded-efficacy" />}
            </tbody>
          </table>
          <p className="caption">
            {plural(attacker.asked.n, "forget row")}, {plural(attacker.matched.n, "matched non-member")} that the attacker was not fitted on.
            {thinned ? " Of so many values an evenly spaced part is drawn, and the numbers at the threshold rest on it." : ""}
            {data.samples.some((s) => s.left_out) ? ` Not finite, and left out: ${data.samples.filter((s) => s.left_out).map((s) => `${s.left_out} of the ${s.name}`).join(", ")}.` : ""}
          </p>
        </div>
        <div className="panel">
          <div className="row">
            <h3>ROC</h3>
            <Segments label="Axes" value={log ? "log" : "linear"} options={[{ value: "log", label: "log" }, { value: "linear", label: "linear" }]} onChange={(v) => setLog(v === "log")} />
          </div>
          <Roc
            log={log}
            at={[fpr, tpr]}
            band={attacker.retrained}
            sides={[{ name: shownModel(props.model), color: COLOR.forget, members: attacker.asked.values, nonmembers: attacker.matched.values, membersBelow: attacker.members_below }]}
          />
        </div>
      </div>
      {data.missing.holdout && <Note>Holdout: {data.missing.holdout}.</Note>}
    </>
  );
}

function bestThreshold(attacker: Attacker): number {
  const values = [...attacker.asked.values, ...attacker.matched.values].sort((a, b) => a - b);
  let [best, found] = [-Infinity, attacker.threshold];
  for (let i = 0; i + 1 < values.length; i++) {
    const t = (values[i] + values[i + 1]) / 2;
    const share = (v: number[]) => below(v, t) / Math.max(1, v.length);
    const gain = (attacker.members_below ? 1 : -1) * (share(attacker.asked.values) - share(attacker.matched.values));
    if (gain > best) [best, found] = [gain, t];
  }
  return found;
}

function ScoreRow(props: { name: string; score: NonNullable<Attacker["auc"]>; id: string }) {
  const { score } = props;
  const digits = (v: number) => (score.unit === "share" ? percent(v) : v.toFixed(4));
  return (
    <tr>
      <td>{props.name}</td>
      <td className="n" id={props.id}>{score.value === null ? <Undefined reason={score.reason} status={score.status} /> : digits(score.value)}</td>
      <td className="n">{score.interval ? `${digits(score.interval.low)} – ${digits(score.interval.high)}` : "–"}</td>
      <td className="n">{score.retrained === null ? "–" : digits(score.retrained)}</td>
      <td className="n">{score.gap === null ? "–" : signed(score.gap, score.unit)}</td>
    </tr>
  );
}

function Fact(props: { name: string; id: string; children: React.ReactNode }) {
  return (
    <div>
      <dt>{props.name}</dt>
      <dd id={props.id}>{props.children}</dd>
    </div>
  );
}

function AgainstRetrained(props: { data: Separation; model: string }) {
  const { data } = props;
  const { params } = useRoute();
  const own = data.comparisons.filter((c) => !c.null);
  const chosen: Comparison | undefined = own.find((c) => c.name === params.versus) ?? own.reduce<Comparison | undefined>((w, c) => (w && w.advantage >= c.advantage ? w : c), undefined);
  const none = data.comparisons.find((c) => c.null);
  const [at, setAt] = useThreshold(chosen?.threshold ?? 0);
  if (!chosen) return <Note>{data.missing.comparisons ?? "there is nothing to compare with"}.</Note>;
  const reference = data.samples.find((s) => s.role === "retrained" && chosen.name.endsWith(` against ${s.name.split(",")[0]}`));
  const mine = data.samples[0].values;
  const theirs = reference?.values ?? [];
  const up = (v: number[]) => 1 - upTo(v, at) / Math.max(1, v.length);
  const [called, wrongly] = chosen.above ? [up(mine), up(theirs)] : [1 - up(mine), 1 - up(theirs)];
  const [fpr, fnr] = [wrongly, 1 - called];
  const quality = forgettingQuality(fpr, fnr, data.delta);
  const side = chosen.above ? ["retrained", "this model"] : ["this model", "retrained"];
  return (
    <>
      <div className="row">
        <Choice label="Retrained model" value={chosen.name} options={own.map((c) => ({ value: c.name, label: shownModel(c.name.split(" against ")[1]) }))} onChange={(v) => change({ versus: v, at: "" })} />
        <button type="button" onClick={() => change({ at: "" })}>
          Threshold that separates best
        </button>
      </div>
      <div className="two">
        <div className="panel">
          <Distribution
            curves={[
              { name: `forget set, ${shownModel(props.model)}`, color: COLOR.forget, values: mine },
              { name: `forget set, ${shownModel(chosen.name.split(" against ")[1])}`, color: COLOR.retrained, values: theirs, mirrored: true },
            ]}
            edges={data.edges}
            log={data.log}
            band={data.density}
            unit={`${data.statistic.replace(/_/g, " ")} (${data.unit})`}
            threshold={at}
            onThreshold={setAt}
            below={side[0]}
            above={side[1]}
            height={300}
            name={`against-retrained-${data.statistic}`}
          />
          <dl className="facts" aria-live="polite">
            <Fact name="Threshold" id="threshold">{number(at, 4)}</Fact>
            <Fact name="Retrained called this model" id="fpr">{percent(fpr)}</Fact>
            <Fact name="This model called retrained" id="fnr">{percent(fnr)}</Fact>
            <Fact name="Advantage" id="advantage">{number(1 - fpr - fnr, 3)}</Fact>
            <Fact name="Attack score" id="attack-score">{number(1 - quality, 3)}</Fact>
          </dl>
        </div>
        <div className="panel">
          <h3>How far apart, at the threshold that separates best</h3>
          <table className="plain">
            <thead>
              <tr>
                <th scope="col">Models</th>
                <th scope="col" className="n">advantage</th>
                <th scope="col" className="n" title="95 % lower confidence bound at delta 1e-5 (Clopper-Pearson); its threshold is chosen on one half of the rows and counted on the other">ε at least</th>
                <th scope="col" className="n" title="as the Unlearning Comparator defines it; 1 = indistinguishable">privacy score</th>
              </tr>
            </thead>
            <tbody>
              {[...own, ...(none ? [none] : [])].map((c) => (
                <tr key={c.name} className={c.null ? "muted" : ""}>
                  <td>{c.null ? `chance: ${c.name}` : c.name}</td>
                  <td className="n">{number(c.advantage, 3)}</td>
                  <td className="n">{c.epsilon === null ? <Undefined reason="a bound needs two rows on each side" /> : number(c.epsilon, 3)}</td>
                  <td className="n">{number(c.privacy, 3)}</td>
                </tr>
              ))}
            </tbody>
          </table>
          <p className="caption">
            Two retrained models already differ: only what exceeds the line “chance” is a finding{none ? "" : ", which needs a second retrained model"}. The
            threshold was chosen on these rows, which favors the attacker; ε counts only rows that its threshold was not chosen on.
          </p>
        </div>
      </div>
    </>
  );
}

/** As expunge.stats.separation.forgetting_quality. */
export function forgettingQuality(fpr: number, fnr: number, delta: number): number {
  if (fpr === 0 && fnr === 0) return 0;
  if (fpr >= 1 - delta || fnr >= 1 - delta) return 1;
  const log = (above: number, under: number) => (above <= 0 ? -Infinity : under === 0 ? Infinity : Math.log(above / under));
  return 2 ** -Math.max(0, Math.min(log(1 - delta - fpr, fnr), log(1 - delta - fnr, fpr)));
}

function Curves(props: { problem: ProblemView; model: string }) {
  const mine = props.problem.curves.filter((c) => `${c.label}@${c.seed}` === props.model);
  const several = mine.some((c) => c.retrained.models > 1);
  if (!mine.length)
    return (
      <Panel title="What effort brings back">
        <Note>
          No attack of this run was followed along what it spent. Relearning and the like are asked for with <code>attacks: all</code> in a study.
        </Note>
      </Panel>
    );
  return (
    <Panel
      title="What effort brings back"
      caption={`The attacked model against the same attack on retrained models${several ? ": the gray band spans them, in the paler one 95 % of further ones would lie" : " (gray)"}. Forgetting is shallow where the model comes back sooner than they learn.`}
    >
      <div className="two">
        {mine.map((c) => (
          <div key={`${c.metric}${c.split}`} className="panel">
            <h3>
              {c.title}, {splitName(c.split)}
            </h3>
            <Lines
              name={c.metric}
              title={c.unit}
              over={c.curve.over}
              lines={linesOf(c, props.model, props.problem)}
              bands={[{ at: c.retrained.at, band: c.retrained }]}
              range={["knowledge", "share", "AUC"].includes(c.unit) ? [0, 1] : undefined}
            />
          </div>
        ))}
      </div>
    </Panel>
  );
}

function linesOf(c: CurveScore, model: string, problem: ProblemView) {
  const target = problem.curves.find((o) => o.label === "target" && o.seed === c.seed && o.metric === c.metric && model !== `target@${c.seed}`);
  return [
    ...(c.retrained.models ? [{ name: c.retrained.models > 1 ? "retrained, mean" : "retrained", color: COLOR.retrained, at: c.retrained.at, values: c.retrained.mean, dashed: true }] : []),
    ...(target ? [{ name: "target, before forgetting", color: COLOR.target, at: target.curve.at, values: target.curve.values, dashed: true }] : []),
    { name: shownModel(model), color: COLOR.a, at: c.curve.at, values: c.curve.values },
  ];
}

function Claims(props: { problem: ProblemView; model: string }) {
  const label = props.model.replace(/@\d+$/, "");
  const claims = props.problem.claims.filter((c) => c.label === label);
  const verdicts = props.problem.verdicts.filter((v) => v.label === label && props.problem.attacks.some((a) => a.metric === v.metric));
  if (!claims.length && !verdicts.length) return null;
  return (
    <Panel title="What can be claimed">
      {claims.map((c) => (
        <div key={c.claimed} className="card">
          <h3>
            claimed: {c.claimed}; what stands: <span className={c.standing === c.claimed ? "eq" : "ne"}>{c.standing}</span>
            <span className="muted">, residue {c.residue}</span>
          </h3>
          <p>{c.sentence}</p>
          <div className="two small">
            {(
              [
                ["Supports it", c.supports, "eq"],
                ["Breaks it", c.breaks, "ne"],
                ["Missing", c.missing, "un"],
                ["Rests on proxies", c.proxies, "un"],
              ] as [string, string[], string][]
            )
              .filter(([, lines]) => lines.length)
              .map(([title, lines, kind]) => (
                <div key={title}>
                  <b className={kind}>{title}</b>
                  <ul>
                    {lines.map((line) => (
                      <li key={line}>{line}</li>
                    ))}
                  </ul>
                </div>
              ))}
          </div>
        </div>
      ))}
      {verdicts.map((v) => (
        <p key={`${v.metric}${v.split}`}>
          <b className={{ "no larger difference": "eq", different: "ne", undecided: "un" }[v.judgement]}>{v.judgement}</b> · {props.problem.attacks.find((a) => a.metric === v.metric)?.title ?? v.metric}, {splitName(v.split)}: {v.sentence}
        </p>
      ))}
    </Panel>
  );
}

function Recorded(props: { problem: ProblemView; model: string }) {
  const mine = props.problem.attacks.filter((a) => `${a.label}@${a.seed}` === props.model);
  const [all, setAll] = useState(false);
  if (!mine.length)
    return (
      <Panel title="Recorded attacks">
        <Note>No attack was part of this run.</Note>
      </Panel>
    );
  const shown = all ? mine : mine.filter((a) => !a.metric.startsWith("mia-"));
  return (
    <Panel
      title="Recorded attacks"
      tools={
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "Attacks only" : "With membership metrics"}
        </button>
      }
    >
      <div className="scroll" tabIndex={0} role="region" aria-label="recorded attacks, table">
        <table className="plain">
          <thead>
            <tr>
              <th scope="col">Attack</th>
              <th scope="col">On</th>
              <th scope="col" className="n">Value</th>
              <th scope="col" className="n">Interval</th>
              <th scope="col" className="n">Gap to retrained</th>
              <th scope="col">Budget</th>
            </tr>
          </thead>
          <tbody>
            {(shown.length ? shown : mine).map((a) => (
              <AttackRow key={`${a.metric}${a.split}`} score={a} threat={props.problem.threats[a.metric]} />
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

function AttackRow(props: { score: AttackScore; threat?: string }) {
  const { score } = props;
  return (
    <tr>
      <td title={props.threat ? `the attacker has: ${props.threat}` : undefined}>{score.title}</td>
      <td>{splitName(score.split)}</td>
      <td className="n">
        <Value value={score.value} unit={score.unit} reason={score.reason} status={score.status} />
        {score.value !== null && score.unit !== "share" && <span className="muted small"> {score.unit}</span>}
      </td>
      <td className="n">{score.interval ? `${measure(score.interval.low, score.unit)} – ${measure(score.interval.high, score.unit)}` : "–"}</td>
      <td className="n">{score.gap === null ? "–" : signed(score.gap, score.unit)}</td>
      <td className="muted">{Object.entries(score.budget).map(([k, v]) => `${number(v)} ${k}`).join(", ") || "–"}</td>
    </tr>
  );
}
