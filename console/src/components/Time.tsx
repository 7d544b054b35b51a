import { useSyncExternalStore } from "react";

import { formatExact, formatRelative } from "./format";

/** Milliseconds between two renderings of relative times. */
const TICK = 5_000;

const listeners = new Set<() => void>();
let clock = Math.floor(Date.now() / 1_000);
let timer: ReturnType<typeof setInterval> | undefined;

function tick(): void {
  clock = Math.floor(Date.now() / 1_000);
  for (const each of listeners) each();
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  // The clock stood still while nobody read it.
  if (timer === undefined) tick();
  timer ??= setInterval(tick, TICK);
  return () => {
    listeners.delete(listener);
    if (listeners.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };
}

/** Use the time of Unix in seconds; the component is rendered again every few seconds. */
export function useNow(): number {
  return useSyncExternalStore(subscribe, () => clock);
}

/** Render a time of Unix relative to now; the exact time in the reader's zone shows on hover. */
export function Time({ at, exact = false }: { at: number; exact?: boolean }) {
  const now = useNow();
  const moment = new Date(at * 1_000).toISOString();
  return (
    <time dateTime={moment} title={`${formatExact(at)} (${moment})`}>
      {exact ? formatExact(at) : formatRelative(at, Math.max(now, at > now && at - now < TICK / 1_000 ? at : now))}
    </time>
  );
}
