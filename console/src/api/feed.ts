/**
 * The feed of a project's events, by which pages stay up to date.
 *
 *     tab ── asks for the lock ──> leader ── GET /v1/events as a stream ──> API
 *      ^                             │  without a stream: pages every few seconds
 *      └───── BroadcastChannel ──────┘
 *
 * One tab of the browser leads: it holds the connection and passes events on. When it is closed, the lock goes to
 * another tab, which goes on behind the last event that it was passed. Where the browser has no locks (pages that do not
 * come by HTTPS or from this machine), each tab asks for pages.
 */
import { useSyncExternalStore } from "react";

import { ApiError, queries, request, type Schema } from "./client";
import { KINDS } from "./kinds";
import { readEvents } from "./sse";

/** How the feed is followed: by a stream, by pages, or not at all because the server is away. */
type FeedState = "connecting" | "live" | "polling" | "away";

type ProjectEvent = Schema<"ProjectEvent">;
type Position = number | "latest";
type Message = { hello: true } | { state: FeedState; position: Position; events: ProjectEvent[] };

/** Milliseconds. `silence` is four times what the API lets pass between two signs of life. */
const POLL = 5_000;
const RETRY = { first: 1_000, longest: 30_000 };
const SILENCE = 60_000;
const GATHER = 1_000;

/** The resources whose answers change by events, by the type of the event or its beginning. */
const CHANGED: readonly (readonly [type: string, resources: readonly string[]])[] = [
  ["job.", ["jobs", "batches", "throughput", "schedules"]],
  ["webhook_endpoint.", ["webhook_endpoints"]],
  ["model.version.", ["model_versions"]],
  ["model.alias.", ["aliases", "alias_moves"]],
  ...KINDS.flatMap(({ events, resources }) => events.map((type) => [type, ["jobs", ...resources]] as const)),
];

let state: FeedState = "connecting";
const listeners = new Set<() => void>();

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Use how the feed is followed now. */
export function useFeedState(): FeedState {
  return useSyncExternalStore(subscribe, () => state);
}

/** Show a new state. A server that is back may have changed anything meanwhile. */
function setState(next: FeedState): void {
  if (state === "away" && next !== "away") void queries.invalidateQueries();
  if (state === next) return;
  state = next;
  for (const listener of listeners) listener();
}

/** Follow the feed with the project's key until the returned function is called. */
export function startFeed(key: string): () => void {
  const stop = new AbortController();
  void join(key, stop.signal);
  return () => {
    stop.abort();
    setState("connecting");
  };
}

/** Follow the feed as a leader or behind one; alone where the browser has no locks. */
async function join(key: string, signal: AbortSignal): Promise<void> {
  const follower = new Follower();
  const locks = navigator.locks as LockManager | undefined;
  if (locks === undefined) return follower.lead(signal, () => undefined, false);
  const name = `nightmill.feed.${await digest(key)}`;
  if (signal.aborted) return;
  const channel = new BroadcastChannel(name);
  let leads = false;
  const tell = (events: ProjectEvent[]) => {
    channel.postMessage({ state, position: follower.position, events } satisfies Message);
  };
  channel.onmessage = ({ data }: MessageEvent<Message>) => {
    if (!("hello" in data)) follower.hear(data);
    else if (leads) tell([]);
  };
  signal.addEventListener("abort", () => channel.close());
  channel.postMessage({ hello: true } satisfies Message);
  const asked = locks.request(name, { signal }, async () => {
    leads = true;
    await follower.lead(signal, tell, true);
  });
  await asked.catch((error: unknown) => {
    if (!signal.aborted) throw error;
  });
}

async function digest(key: string): Promise<string> {
  const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key));
  return [...new Uint8Array(bytes.slice(0, 16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** What a tab knows of the feed: the position of the last event. */
class Follower {
  position: Position = "latest";

  /** Take over what the leader has heard. */
  hear({ state, position, events }: Exclude<Message, { hello: true }>): void {
    this.position = position;
    setState(state);
    invalidate(events);
  }

  /** Follow the feed until `signal` aborts or the key is refused; `tell` passes on each change of the state and events. */
  async lead(signal: AbortSignal, tell: (events: ProjectEvent[]) => void, byStream: boolean): Promise<void> {
    const report = (next: FeedState, events: ProjectEvent[] = []) => {
      if (signal.aborted) return;
      const isNews = state !== next || events.length > 0;
      setState(next);
      invalidate(events);
      if (isNews) tell(events);
    };
    let failures = 0;
    while (!signal.aborted) {
      try {
        await this.readPages(signal, report);
        failures = 0;
        if (byStream) await this.readStream(signal, report);
      } catch (error) {
        if (signal.aborted || isStatus(error, 401)) return;
        if (isStatus(error, 400) || isStatus(error, 410)) this.forget();
        if (!isAway(error)) report("polling");
        else {
          failures += 1;
          report("away");
        }
      }
      await wait(failures > 0 ? Math.min(RETRY.first * 2 ** (failures - 1), RETRY.longest) : POLL, signal);
    }
  }

  /** Begin anew: events behind the position are gone, or the position is of another database. */
  private forget(): void {
    this.position = "latest";
    void queries.invalidateQueries();
  }

  private async readPages(signal: AbortSignal, report: (next: FeedState, events: ProjectEvent[]) => void): Promise<void> {
    for (;;) {
      const answer = await request(`/v1/events?after=${this.position}`, { signal });
      const page = (await answer.json()) as Schema<"ProjectEventPage">;
      this.position = page.last_position;
      report("polling", page.data);
      if (!page.has_more) return;
    }
  }

  private async readStream(signal: AbortSignal, report: (next: FeedState, events?: ProjectEvent[]) => void): Promise<void> {
    const silent = new AbortController();
    const open = AbortSignal.any([signal, silent.signal]);
    let watch = setTimeout(() => silent.abort(), SILENCE);
    try {
      const answer = await request(`/v1/events?after=${this.position}`, { signal: open, headers: { Accept: "text/event-stream" } });
      const heard = () => {
        clearTimeout(watch);
        watch = setTimeout(() => silent.abort(), SILENCE);
        report("live");
      };
      for await (const { data } of readEvents(answer.body!, heard)) {
        const event = JSON.parse(data) as ProjectEvent;
        this.position = event.position;
        report("live", [event]);
      }
    } finally {
      clearTimeout(watch);
    }
  }
}

function isStatus(error: unknown, status: number): boolean {
  return error instanceof ApiError && error.status === status;
}

/** Return whether an error says that the server is away; a stream that breaks off or falls silent says it, too. */
function isAway(error: unknown): boolean {
  return !(error instanceof ApiError) || error.status === 0 || error.status >= 500;
}

/** Wait; return early when `signal` aborts or the browser says that the network is back. */
function wait(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    addEventListener("online", end);
    signal.addEventListener("abort", end);
  });
}

let gathered: ProjectEvent[] = [];

/** Ask anew for what `events` changed, at most once a second. */
function invalidate(events: readonly ProjectEvent[]): void {
  if (events.length === 0) return;
  if (gathered.length === 0) setTimeout(flush, GATHER);
  gathered.push(...events);
}

function flush(): void {
  const events = gathered;
  gathered = [];
  void queries.invalidateQueries({ predicate: ({ queryKey }) => isChanged(queryKey, events) });
}

/**
 * Return whether events changed the answer to a query.
 *
 * A list changes by every event of its kind, an object by the events that name it.
 */
function isChanged(queryKey: readonly unknown[], events: readonly ProjectEvent[]): boolean {
  const [path] = queryKey;
  if (typeof path !== "string") return false;
  const key = JSON.stringify(queryKey);
  return events.some((event) => {
    const resources = CHANGED.find(([type]) => event.type.startsWith(type))?.[1] ?? [];
    if (!resources.some((each) => `${path}/`.startsWith(`/v1/${each}/`))) return false;
    return !path.includes("{") || idsOf(event).some((id) => key.includes(id));
  });
}

function idsOf(event: ProjectEvent): string[] {
  const { id, vector_store_id: store, model } = event.data as { id?: string; vector_store_id?: string; model?: string };
  return [event.subject_id, id, store, model].filter((each) => each !== undefined);
}
