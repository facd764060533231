// A form made from a JSON Schema: each field says what it means, its default and where that comes from, and what is wrong with it.
import { several, value } from "./draft";

export type Form = Record<string, unknown>;
interface Property {
  description?: string;
  default?: unknown;
  source?: string;
  type?: string;
  enum?: unknown[];
  const?: unknown;
  anyOf?: Property[];
  $ref?: string;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
}

const properties = (form: Form) => (form.properties ?? {}) as Record<string, Property>;
const variants = (p: Property): Property[] => (p.anyOf ? p.anyOf : [p]);
const kinds = (p: Property) => variants(p).map((v) => v.type);
const choices = (p: Property) => variants(p).flatMap((v) => v.enum ?? (v.const === undefined ? [] : [v.const]));

/** What is wrong with one value of a field; empty where nothing is. */
export function fault(p: Property, typed: string): string {
  const given = value(typed);
  const options = choices(p);
  const types = kinds(p);
  if (variants(p).some((v) => v.$ref) || (p.type === undefined && !p.anyOf && !p.enum)) return "";
  if (options.length && options.includes(given)) return "";
  if (given === null && types.includes("null")) return "";
  if (options.length && !types.some((t) => t === "number" || t === "integer" || t === "array")) return `must be one of ${options.join(", ")}`;
  if (types.includes("boolean") && typeof given === "boolean") return "";
  const numeric = variants(p).find((v) => v.type === "number" || v.type === "integer");
  if (typeof given === "number" && numeric) {
    if (numeric.type === "integer" && !types.includes("number") && !Number.isInteger(given)) return "must be a whole number";
    const limits = { ...p, ...numeric };
    if (limits.minimum !== undefined && given < limits.minimum) return `must be at least ${limits.minimum}`;
    if (limits.maximum !== undefined && given > limits.maximum) return `must be at most ${limits.maximum}`;
    if (limits.exclusiveMinimum !== undefined && given <= limits.exclusiveMinimum) return `must be above ${limits.exclusiveMinimum}`;
    if (limits.exclusiveMaximum !== undefined && given >= limits.exclusiveMaximum) return `must be below ${limits.exclusiveMaximum}`;
    return "";
  }
  if (types.includes("string")) return "";
  if (types.includes("array") && Array.isArray(given)) return "";
  if (types.includes("object") && typeof given === "object" && given !== null) return "";
  const words: Record<string, string> = { number: "a number", integer: "a whole number", boolean: "true or false", array: "a list such as [1, 2]", object: "a mapping", null: "null" };
  return `must be ${types.map((t) => words[t ?? ""] ?? "text").join(" or ")}`;
}

export function faultsOf(form: Form, values: Record<string, string>, many: boolean): string[] {
  const known = properties(form);
  return Object.entries(values).flatMap(([key, typed]) => {
    if (typed.trim() === "") return [];
    const p = known[key];
    if (!p) return [`there is no parameter '${key}'`];
    const found = (many && !kinds(p).includes("array") ? several(typed) : [typed]).map((t) => fault(p, t)).find((f) => f);
    return found ? [`'${key}' ${found}`] : [];
  });
}

export function Fields(props: {
  form: Form;
  values: Record<string, string>;
  many: boolean;
  only?: string[];
  skip?: string[];
  onChange: (values: Record<string, string>) => void;
}) {
  const known = Object.entries(properties(props.form)).filter(([key]) => (props.only ?? [key]).includes(key) && !props.skip?.includes(key));
  if (!known.length) return <p className="small muted">It has no parameters.</p>;
  return (
    <div className="card" style={{ border: 0, padding: "0.5rem 0 0" }}>
      <div className="parameters">
        {known.map(([key, p]) => (
          <Field key={key} name={key} property={p} typed={props.values[key] ?? ""} many={props.many} onChange={(typed) => props.onChange({ ...props.values, [key]: typed })} />
        ))}
      </div>
    </div>
  );
}

function Field(props: { name: string; property: Property; typed: string; many: boolean; onChange: (typed: string) => void }) {
  const { property, typed } = props;
  const wrong = typed.trim() === "" ? "" : (faultsOf({ properties: { [props.name]: property } }, { [props.name]: typed }, props.many)[0] ?? "").replace(/^'[^']*' /, "");
  const standard = property.default === undefined || property.default === null ? "" : typeof property.default === "string" ? property.default : JSON.stringify(property.default);
  const options = choices(property);
  const hint = [property.description, property.source && `default from: ${property.source}`].filter(Boolean).join("\n");
  const id = `field-${props.name}`;
  return (
    <label className="field" title={hint}>
      {props.name.replace(/_/g, " ")}
      {options.length > 0 && !props.many ? (
        <select value={typed} onChange={(e) => props.onChange(e.target.value)}>
          <option value="">{standard ? `${standard} (default)` : "default"}</option>
          {options.map((o) => (
            <option key={String(o)} value={String(o)}>
              {String(o)}
            </option>
          ))}
        </select>
      ) : (
        <input type="text" value={typed} placeholder={standard || "default"} aria-invalid={wrong !== ""} aria-describedby={wrong ? id : undefined} onChange={(e) => props.onChange(e.target.value)} />
      )}
      {wrong && (
        <span id={id} className="ne">
          {wrong}
        </span>
      )}
    </label>
  );
}
