// Numbers as a reader wants them; nothing here rounds what is compared.
export const SPLITS: Record<string, string> = {
  forget: "forget set", retain: "retain set", test: "test", ood: "shifted test", authors: "real authors", world: "world facts",
  verbatim: "passages to forget", knowledge: "questions on what is to be forgotten",
  "retain-knowledge": "questions on what is kept", holdout: "holdout", run: "whole run",
};
export const splitName = (split: string) => SPLITS[split] ?? split;
export const DIRECTIONS: Record<string, [string, string]> = {
  higher: ["↑", "higher is better"], lower: ["↓", "lower is better"], match: ["≈", "match retraining"],
};

export function number(value: number, digits = 4): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(1).replace("e+", "e").replaceAll("-", "−");
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 }).replace("-", "−");
}

export function measure(value: number, unit: string): string {
  if (unit === "share") return `${(100 * value).toFixed(1).replace("-", "−")} %`;
  if (unit === "bytes") return bytes(value);
  if (unit === "seconds") return duration(value);
  return number(value, 3);
}

export function signed(value: number, unit: string): string {
  const shown = unit === "share" ? (100 * value).toFixed(1) : number(value, 2).replace("−", "-");
  if (Number(shown) === 0) return "±0";
  return (value > 0 ? `+${shown}` : shown).replace("-", "−");
}

export function duration(seconds: number): string {
  if (seconds < 0.1) return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(size: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (size >= 1024 && i < units.length - 1) [size, i] = [size / 1024, i + 1];
  return `${size.toFixed(size < 10 && i > 0 ? 1 : 0)} ${units[i]}`;
}

export function ago(seconds: number): string {
  if (seconds < 90) return "just now";
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

export const plural = (n: number, noun: string) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
/** Sorts layer2 before layer10. */
export const natural = new Intl.Collator("en", { numeric: true }).compare;
