// The address of every view: #/page?key=value. Whatever a reader chooses is in it, so a view can be shared.
import { useSyncExternalStore } from "react";

export type Params = Record<string, string>;
export interface Route {
  page: string;
  params: Params;
}

let current = parse(location.hash);

export function parse(hash: string): Route {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { page: path || "screen", params: Object.fromEntries(new URLSearchParams(query)) };
}

export function address(page: string, params: Params): string {
  const kept = Object.entries(params).filter(([, value]) => value !== "");
  const query = new URLSearchParams(kept).toString();
  return `#/${page}${query ? `?${query}` : ""}`;
}

function subscribe(changed: () => void): () => void {
  const listen = () => {
    current = parse(location.hash);
    changed();
  };
  addEventListener("hashchange", listen);
  return () => removeEventListener("hashchange", listen);
}

export function useRoute(): Route {
  return useSyncExternalStore(subscribe, () => current);
}

export function go(page: string, params: Params): void {
  location.hash = address(page, params);
}

/** Change some parameters of the page that is shown; typing in a field makes no entry in the history. */
export function change(some: Params, replace = true): void {
  const next = address(current.page, { ...current.params, ...some });
  if (!replace) location.hash = next;
  else if (next !== location.hash) {
    history.replaceState(null, "", next);
    dispatchEvent(new HashChangeEvent("hashchange"));
  }
}
