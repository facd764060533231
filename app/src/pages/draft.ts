// A study while it is being put together: what was typed, as text; and the study it stands for.
type Plain = Record<string, unknown>;
export interface DraftProblem {
  own: boolean;
  benchmark: string;
  name: string;
  forget: string;
  options: Record<string, string>;
  fields: Record<string, string>;
  /** what the form has no field for */
  rest: Plain;
}
export interface DraftMethod {
  name: string;
  label: string;
  values: Record<string, string>;
}
export interface Draft {
  name: string;
  seeds: string;
  attacks: string;
  chosen: string[];
  device: string;
  problems: DraftProblem[];
  methods: DraftMethod[];
  rest: Plain;
}

const text = (v: unknown) => (typeof v === "string" ? v : JSON.stringify(v));

/** A draft of a study that exists. */
export function drafted(given: Plain): Draft {
  const { name, problems, methods, seeds, attacks, device, ...rest } = given;
  const named = Array.isArray(attacks);
  return {
    name: String(name ?? "study"),
    seeds: Array.isArray(seeds) ? seeds.join(", ") : String(seeds ?? "0-2"),
    attacks: named ? (attacks.length ? "chosen" : "none") : String(attacks ?? "none"),
    chosen: named ? attacks.map((a) => (typeof a === "string" ? a : String((a as Plain).name))) : [],
    device: String(device ?? "cpu"),
    problems: ((problems as Plain[]) ?? []).map(draftedProblem),
    methods: ((methods as unknown[]) ?? []).map((m) => {
      if (typeof m === "string") return { name: m, label: "", values: {} };
      const { name: method, label, parameters, ...values } = m as Plain;
      return { name: String(method), label: String(label ?? ""), values: texts({ ...values, ...(parameters as Plain) }) };
    }),
    rest,
  };
}

function draftedProblem(p: Plain): DraftProblem {
  const { name, benchmark, forget, options, ...rest } = p;
  const fields: Record<string, string> = {};
  if (!benchmark) for (const [k, v] of Object.entries(rest)) if (typeof v === "string") [fields[k], rest[k]] = [v, undefined];
  return {
    own: !benchmark, benchmark: String(benchmark ?? ""), name: String(name ?? ""), forget: forget === undefined ? "" : text(forget),
    options: texts((options as Plain) ?? {}), fields, rest,
  };
}

const texts = (values: Plain) => Object.fromEntries(Object.entries(values).map(([k, v]) => [k, text(v)]));

/** What a text stands for: a number, true, false, null, JSON, or itself. */
export function value(typed: string): unknown {
  const trimmed = typed.trim();
  if (/^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$/.test(trimmed)) return Number(trimmed);
  if (/^(true|false|null)$/.test(trimmed) || /^[[{"]/.test(trimmed)) {
    try {
      return JSON.parse(trimmed);
    } catch {
      return trimmed;
    }
  }
  return trimmed;
}

/** The several values of a field; commas inside brackets do not separate. */
export function several(typed: string): string[] {
  if (/^\s*[[{"]/.test(typed)) return [typed];
  return typed.split(",").map((t) => t.trim()).filter((t) => t !== "");
}

const filled = (values: Record<string, string>) => Object.entries(values).filter(([, v]) => v.trim() !== "");
const read = (values: Record<string, string>) => Object.fromEntries(filled(values).map(([k, v]) => [k, value(v)]));

/** Every combination of the values of each method's fields. */
export function expanded(methods: DraftMethod[]): (string | Plain)[] {
  return methods.flatMap((m) => {
    let settings: Plain[] = [{}];
    for (const [key, typed] of filled(m.values)) settings = settings.flatMap((s) => several(typed).map((v) => ({ ...s, [key]: value(v) })));
    return settings.map((s) => {
      if (!Object.keys(s).length && !m.label) return m.name;
      return { name: m.name, ...(m.label && settings.length === 1 ? { label: m.label } : {}), parameters: s };
    });
  });
}

export function study(draft: Draft): Plain {
  const range = draft.seeds.trim();
  const seeds = /^\d+-\d+$/.test(range) ? range : several(range).map(value);
  return {
    ...draft.rest,
    name: draft.name,
    problems: draft.problems.map((p) => ({
      ...p.rest,
      ...(p.name ? { name: p.name } : {}),
      ...(p.own ? read(p.fields) : { benchmark: p.benchmark }),
      ...(p.forget ? { forget: value(p.forget) } : {}),
      ...(!p.own && filled(p.options).length ? { options: read(p.options) } : {}),
    })),
    methods: expanded(draft.methods),
    seeds,
    attacks: draft.attacks === "none" ? [] : draft.attacks === "chosen" ? draft.chosen : draft.attacks,
    ...(draft.device === "cpu" ? {} : { device: draft.device }),
  };
}
