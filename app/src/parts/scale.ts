// Scales of the hand-made charts.
export interface Scale {
  (value: number): number;
  invert(position: number): number;
  ticks: number[];
  log: boolean;
}

export function linear(low: number, high: number, from: number, to: number, count = 6): Scale {
  const span = high - low || 1;
  const scale = ((v: number) => from + ((v - low) / span) * (to - from)) as Scale;
  scale.invert = (p) => low + ((p - from) / (to - from)) * span;
  scale.ticks = nice(low, high, count);
  scale.log = false;
  return scale;
}

export function logarithmic(low: number, high: number, from: number, to: number): Scale {
  const [a, b] = [Math.log10(low), Math.log10(high)];
  const scale = ((v: number) => from + ((Math.log10(Math.max(v, low)) - a) / (b - a || 1)) * (to - from)) as Scale;
  scale.invert = (p) => 10 ** (a + ((p - from) / (to - from)) * (b - a));
  const step = Math.max(1, Math.ceil((b - a) / 6));
  scale.ticks = [];
  for (let k = Math.ceil(a - 1e-9); k <= b + 1e-9; k += step) scale.ticks.push(10 ** k);
  scale.log = true;
  return scale;
}

export function nice(low: number, high: number, count: number): number[] {
  const raw = (high - low || 1) / count;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= raw) as number;
  const ticks: number[] = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) ticks.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return ticks;
}

/** How many of `sorted` are below `value`. */
export function below(sorted: number[], value: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** How many of `sorted` are at or below `value`. */
export function upTo(sorted: number[], value: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}
