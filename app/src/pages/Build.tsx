// Put a study together, see what it would cost, start it, and watch it.
import { useEffect, useMemo, useState } from "react";
import { Choice, Note, Panel, Wait } from "../parts/basics";
import { bytes, duration, plural } from "../format";
import { forget, post, useData } from "../api";
import { useSession } from "../context";
import { change, useRoute } from "../route";
import type { Catalog, PlanView, StartedRun } from "../api-types";
import { type Draft, type DraftMethod, type DraftProblem, drafted, expanded, study } from "./draft";
import { Fields, faultsOf } from "./Fields";
import { Studies } from "./Studies";

export function Build() {
  const { bundle } = useSession();
  const catalog = useData<Catalog>(bundle ? undefined : "/api/catalog");
  if (bundle) return <Note>These pages were published as files; studies are started where expunge runs.</Note>;
  return (
    <>
      <div className="title">
        <h1>Build</h1>
        <p>A study trains a target, retrains it without the forget set, forgets with every method, measures and judges. It runs as a process of its own: closing this page, or the app, does it no harm.</p>
      </div>
      <Studies />
      <Wait of={catalog} height={420}>
        {(found) => <Form catalog={found} />}
      </Wait>
    </>
  );
}

function Form(props: { catalog: Catalog }) {
  const { catalog } = props;
  const { params } = useRoute();
  const [draft, setDraft] = useState<Draft>(() => {
    try {
      return JSON.parse(sessionStorage.getItem("draft") ?? "") as Draft;
    } catch {
      return drafted({ name: "first", problems: [{ benchmark: "digits", forget: "class=3" }], methods: ["npo", "ssd"], seeds: [0, 1, 2] });
    }
  });
  const [given, setGiven] = useState<{ plan?: PlanView; error?: string; busy: boolean }>({ busy: true });
  const [workers, setWorkers] = useState("");
  const [starting, setStarting] = useState("");
  const made = useMemo(() => study(draft), [draft]);
  const text = JSON.stringify(made);
  const own = useMemo(() => draftFaults(draft, catalog), [draft, catalog]);
  useEffect(() => {
    sessionStorage.setItem("draft", JSON.stringify(draft));
    if (own.length) return setGiven({ busy: false });
    let gone = false;
    setGiven((g) => ({ ...g, busy: true }));
    const timer = setTimeout(() => {
      post<PlanView>("/api/plan", { study: made }).then(
        (plan) => gone || setGiven({ plan, busy: false }),
        (e: Error) => gone || setGiven({ error: e.message, busy: false }),
      );
    }, 350);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [text, own.length]);
  const faults = [...own, ...(given.error ? [given.error] : []), ...(given.plan?.faults ?? [])];
  const set = (some: Partial<Draft>) => setDraft({ ...draft, ...some });
  const start = async () => {
    setStarting("");
    try {
      const { run } = await post<StartedRun>("/api/studies", { study: made, workers: workers === "" ? null : Number(workers) });
      forget("/api/runs");
      change({ watch: run }, false);
      scrollTo({ top: 0, behavior: "smooth" });
    } catch (e) {
      setStarting((e as Error).message);
    }
  };
  return (
    <div className="build">
      <form onSubmit={(e) => e.preventDefault()} style={{ display: "grid", gap: "1.8rem" }}>
        <div className="row">
          <Choice
            label="Start from"
            value={params.from ?? ""}
            options={[{ value: "", label: "this draft" }, ...Object.keys(catalog.embedded).map((name) => ({ value: name, label: name }))]}
            onChange={(name) => {
              change({ from: name });
              if (name) setDraft(drafted({ ...catalog.embedded[name], name: `my-${name}` }));
            }}
          />
          <label className="field">
            Name
            <input type="text" value={draft.name} aria-invalid={!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(draft.name)} onChange={(e) => set({ name: e.target.value })} />
          </label>
          <label className="field">
            Seeds
            <input type="text" value={draft.seeds} size={8} onChange={(e) => set({ seeds: e.target.value })} />
          </label>
          <Choice
            label="Attacks"
            value={draft.attacks}
            options={[
              { value: "none", label: "none" },
              { value: "standard", label: "all that train nothing" },
              { value: "all", label: "all that fit" },
              { value: "chosen", label: "chosen ones" },
            ]}
            onChange={(attacks) => set({ attacks })}
          />
          <label className="field">
            Device
            <input type="text" value={draft.device} size={6} onChange={(e) => set({ device: e.target.value })} />
          </label>
        </div>
        {draft.attacks === "chosen" && (
          <div className="choices">
            {catalog.attacks.map((a) => (
              <label key={a.name} className="row small" title={a.summary}>
                <input
                  type="checkbox"
                  checked={draft.chosen.includes(a.name)}
                  onChange={(e) => set({ chosen: e.target.checked ? [...draft.chosen, a.name] : draft.chosen.filter((n) => n !== a.name) })}
                />
                {a.name}
              </label>
            ))}
          </div>
        )}
        <Problems catalog={catalog} problems={draft.problems} onChange={(problems) => set({ problems })} />
        <Methods catalog={catalog} methods={draft.methods} onChange={(methods) => set({ methods })} families={familiesOf(draft, catalog)} />
      </form>
      <aside aria-label="plan">
        <Plan plan={given.plan} busy={given.busy} faults={faults} methods={expanded(draft.methods).length} />
        <label className="field">
          Jobs at a time
          <input type="number" min={0} value={workers} placeholder="one per core" onChange={(e) => setWorkers(e.target.value)} />
        </label>
        <button type="button" className="primary" disabled={faults.length > 0 || given.busy || !given.plan} onClick={start}>
          Start the study
        </button>
        {starting && <Note wrong>{starting}</Note>}
        <details>
          <summary>The study as data</summary>
          <pre className="record" tabIndex={0}>{JSON.stringify(made, null, 1)}</pre>
        </details>
      </aside>
    </div>
  );
}

function familiesOf(draft: Draft, catalog: Catalog): Set<string> {
  return new Set(draft.problems.flatMap((p) => (p.own ? [p.fields.family || "any"] : (catalog.benchmarks.find((b) => b.name === p.benchmark)?.families ?? []))));
}

function draftFaults(draft: Draft, catalog: Catalog): string[] {
  const faults: string[] = [];
  if (!draft.problems.length) faults.push("a study needs a problem");
  if (!draft.methods.length) faults.push("a study needs a method");
  draft.methods.forEach((m) => {
    const known = catalog.methods.find((c) => c.name === m.name);
    if (known) faults.push(...faultsOf(known.form, m.values, true).map((f) => `${m.name}: ${f}`));
  });
  draft.problems.forEach((p) => {
    const known = catalog.benchmarks.find((b) => b.name === p.benchmark);
    if (!p.own && known) faults.push(...faultsOf(known.form, p.options, false).map((f) => `${p.benchmark}: ${f}`));
  });
  return faults;
}

function Plan(props: { plan?: PlanView; busy: boolean; faults: string[]; methods: number }) {
  const { plan } = props;
  const total = (jobs: Record<string, number>) => Object.values(jobs).reduce((s, n) => s + n, 0);
  return (
    <Panel title="What it would do">
      <div aria-live="polite" aria-busy={props.busy} style={{ display: "grid", gap: "0.7rem", opacity: props.busy ? 0.6 : 1 }}>
        {props.faults.map((f) => (
          <Note key={f} wrong>
            {f}
          </Note>
        ))}
        {!props.faults.length && plan && (
          <>
            <dl className="facts">
              <div>
                <dt>Jobs to do</dt>
                <dd>
                  {total(plan.to_do)} <small>of {total(plan.jobs)}</small>
                </dd>
              </div>
              <div>
                <dt>Work, one after the other</dt>
                <dd title={plan.seconds === null ? `no job of the kind ${plan.unknown.join(", ")} has run here yet` : "mean duration of jobs of each kind in earlier runs here"}>
                  {plan.seconds === null ? <small>unknown: first of its kind here</small> : `about ${duration(plan.seconds)}`}
                </dd>
              </div>
            </dl>
            <table className="plain">
              <tbody>
                {plan.problems.map((p) => {
                  const size = p as { name: string; parameters: number; training_bytes: number; train: number; forget: number };
                  return (
                    <tr key={size.name}>
                      <td>{size.name}</td>
                      <td>
                        forget {size.forget.toLocaleString("en")} of {plural(size.train, "row")}; {plural(size.parameters, "parameter")}; {bytes(size.training_bytes)} to train, activations apart
                      </td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
            {plan.memory.length > 0 && (
              <details>
                <summary>Memory of a training step</summary>
                <table className="plain">
                  <tbody>
                    {plan.memory.map((m, i) => (
                      <tr key={i}>
                        <td>{String(m.method)}</td>
                        <td className="n">{bytes(Number(m.total))}</td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </details>
            )}
            {plan.skipped.map((s) => (
              <Note key={s}>Left out: {s}.</Note>
            ))}
          </>
        )}
        {!props.faults.length && !plan && <p className="muted">Working it out …</p>}
      </div>
    </Panel>
  );
}

function Problems(props: { catalog: Catalog; problems: DraftProblem[]; onChange: (problems: DraftProblem[]) => void }) {
  const { catalog, problems } = props;
  const set = (i: number, some: Partial<DraftProblem>) => props.onChange(problems.map((p, j) => (i === j ? { ...p, ...some } : p)));
  const add = (p: DraftProblem) => props.onChange([...problems, p]);
  return (
    <fieldset>
      <legend>Problems</legend>
      {problems.map((p, i) => {
        const known = catalog.benchmarks.find((b) => b.name === p.benchmark);
        return (
          <div key={i} className="card">
            <div className="row">
              {p.own ? (
                <b>Your own model and data</b>
              ) : (
                <Choice label="Benchmark" value={p.benchmark} options={catalog.benchmarks.map((b) => b.name)} onChange={(benchmark) => set(i, { benchmark, options: {} })} />
              )}
              <label className="field">
                Called
                <input type="text" value={p.name} placeholder={p.own ? "" : p.benchmark} onChange={(e) => set(i, { name: e.target.value })} />
              </label>
              <label className="field">
                Forget
                <input type="text" value={p.forget} placeholder="class=3, fraction=0.1, ids=FILE" onChange={(e) => set(i, { forget: e.target.value })} />
              </label>
              <span className="grow" />
              <button type="button" className="plain" onClick={() => props.onChange(problems.filter((_, j) => i !== j))}>
                Remove
              </button>
            </div>
            {known && !p.own && <p className="small muted">{known.summary}</p>}
            {p.own ? (
              <Fields form={catalog.problem} values={p.fields} many={false} only={OWN} onChange={(fields) => set(i, { fields })} />
            ) : (
              known && Object.keys((known.form.properties as object) ?? {}).length > 1 && (
                <details>
                  <summary>Options</summary>
                  <Fields form={known.form} values={p.options} many={false} skip={["forget"]} onChange={(options) => set(i, { options })} />
                </details>
              )
            )}
          </div>
        );
      })}
      <div className="row">
        <button type="button" onClick={() => add({ own: false, benchmark: catalog.benchmarks[0]?.name ?? "", name: "", forget: "", options: {}, fields: {}, rest: {} })}>
          Add a benchmark
        </button>
        <button type="button" onClick={() => add({ own: true, benchmark: "", name: "", forget: "", options: {}, fields: {}, rest: {} })}>
          Bring your own
        </button>
      </div>
    </fieldset>
  );
}

const OWN = ["model", "data", "family", "target", "holdout", "test", "retrained", "pretrained", "forget_data", "retain", "id", "group"];

function Methods(props: { catalog: Catalog; methods: DraftMethod[]; families: Set<string>; onChange: (methods: DraftMethod[]) => void }) {
  const { catalog, methods, families } = props;
  const [wanted, setWanted] = useState("");
  const fits = (name: string) => {
    const known = catalog.methods.find((m) => m.name === name);
    return !known || families.has("any") || known.families.some((f) => families.has(f));
  };
  const found = catalog.methods.filter((m) => fits(m.name) && `${m.name} ${m.summary}`.toLowerCase().includes(wanted.toLowerCase()));
  const set = (i: number, some: Partial<DraftMethod>) => props.onChange(methods.map((m, j) => (i === j ? { ...m, ...some } : m)));
  return (
    <fieldset>
      <legend>Methods</legend>
      {methods.map((m, i) => {
        const known = catalog.methods.find((c) => c.name === m.name);
        const count = expanded([m]).length;
        return (
          <div key={i} className="card">
            <div className="row">
              <b>{m.name}</b>
              {count > 1 && <span className="badge">{count} settings</span>}
              {!fits(m.name) && <span className="badge failed">fits no problem above</span>}
              {known && <span className="small muted">{known.source}</span>}
              <span className="grow" />
              <button type="button" className="plain" onClick={() => props.onChange(methods.filter((_, j) => i !== j))}>
                Remove
              </button>
            </div>
            {known && <p className="small muted">{known.summary}</p>}
            {known && (
              <details open={Object.keys(m.values).length > 0}>
                <summary>Parameters; several values, separated by commas, are all tried</summary>
                <Fields form={known.form} values={m.values} many onChange={(values) => set(i, { values })} />
              </details>
            )}
          </div>
        );
      })}
      <label className="field">
        Add a method
        <input type="search" value={wanted} placeholder={`among ${catalog.methods.length}`} onChange={(e) => setWanted(e.target.value)} />
      </label>
      <div className="choices">
        {found.slice(0, wanted ? 40 : 12).map((m) => (
          <button key={m.name} type="button" title={`${m.summary}\n${m.source}`} onClick={() => props.onChange([...methods, { name: m.name, label: "", values: {} }])}>
            + {m.name}
          </button>
        ))}
        {!found.length && <span className="muted">no method of that name fits the problems above</span>}
      </div>
      {!wanted && found.length > 12 && <p className="small muted">{found.length - 12} more; type to find them.</p>}
    </fieldset>
  );
}
