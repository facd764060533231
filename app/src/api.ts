// What the pages ask the server, or, in a published bundle, read from files.
import { useEffect, useState } from "react";
import type { Session } from "./api-types";

export const BUNDLE = document.querySelector('meta[name="expunge-bundle"]') !== null;

const answers = new Map<string, Promise<unknown>>();
let token = "";

/** Query of an address, in a fixed order, without what is empty. */
export function query(path: string, params: Record<string, string | number | boolean | undefined>): string {
  const kept = Object.entries(params).filter(([, v]) => v !== undefined && v !== "" && v !== false);
  kept.sort(([a], [b]) => (a < b ? -1 : 1));
  const text = kept.map(([k, v]) => `${k}=${encodeURIComponent(String(v))}`).join("&");
  return text ? `${path}?${text}` : path;
}

/** Name of the file that holds an answer: FNV-1a over UTF-16 units, twice with different starts. */
export function fileOf(path: string): string {
  const hash = (start: number) => {
    let h = start >>> 0;
    for (let i = 0; i < path.length; i++) h = Math.imul(h ^ path.charCodeAt(i), 16777619) >>> 0;
    return h.toString(16).padStart(8, "0");
  };
  return `data/${hash(2166136261)}${hash(3735928559)}.json`;
}

async function read(path: string): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(BUNDLE ? fileOf(path) : path);
  } catch {
    throw new Error("the server does not answer; is expunge app still running?");
  }
  if (BUNDLE && response.status === 404) throw new Error("this view is not part of the published files");
  const body = await response.json().catch(() => ({ error: `the answer cannot be read (${response.status})` }));
  if (!response.ok || (BUNDLE && typeof body.error === "string" && Object.keys(body).length === 1))
    throw new Error(body.error ?? `the server answers ${response.status}`);
  return body;
}

export function ask<T>(path: string): Promise<T> {
  let known = answers.get(path);
  if (!known) {
    known = read(path);
    answers.set(path, known);
    known.catch(() => answers.delete(path));
    if (answers.size > 400) answers.delete(answers.keys().next().value as string);
  }
  return known as Promise<T>;
}

export function forget(prefix: string): void {
  for (const path of answers.keys()) if (path.startsWith(prefix)) answers.delete(path);
}

export interface Loaded<T> {
  data: T | undefined;
  /** the latest answer, also where it is one to an earlier question */
  last: T | undefined;
  error: string;
  loading: boolean;
}

/** The answer to `path`; undefined path asks nothing. */
export function useData<T>(path: string | undefined, every = 0): Loaded<T> {
  const [state, setState] = useState<Omit<Loaded<T>, "last"> & { path?: string }>({ data: undefined, error: "", loading: true });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    if (!path) return setState({ data: undefined, error: "", loading: false });
    let gone = false;
    setState((s) => ({ ...s, loading: true, error: s.path === path ? s.error : "" }));
    if (turn > 0) answers.delete(path);
    ask<T>(path).then(
      (data) => gone || setState({ data, error: "", loading: false, path }),
      (e: Error) => gone || setState({ data: undefined, error: e.message, loading: false, path }),
    );
    const timer = every ? setTimeout(() => setTurn(turn + 1), every) : undefined;
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [path, turn, every]);
  const own = state.path === path;
  return { data: own ? state.data : undefined, last: state.data, error: own ? state.error : "", loading: !own || state.loading };
}

export async function session(): Promise<Session> {
  const found = await ask<Session>("/api/session");
  token = found.token;
  return found;
}

export async function post<T>(path: string, body?: unknown): Promise<T> {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": token },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? `the server answers ${response.status}`);
  return answer as T;
}
