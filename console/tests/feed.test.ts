import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

type Tab = { feed: typeof import("@/api/feed"); client: typeof import("@/api/client"); session: typeof import("@/api/session") };

const JOB = { id: "evt_1", object: "event", created_at: 1, type: "batch.completed", data: { id: "batch_1" }, subject_id: "batch_1", seq: 3 };

/** The API's side: pages of events, streams that stay open until they are ended. */
class Server {
  asked: string[] = [];
  status: Record<"page" | "stream", number> = { page: 200, stream: 200 };
  events: object[] = [];
  last = 7;
  streams: ReadableStreamDefaultController<Uint8Array>[] = [];

  answer = (request: Request): Promise<Response> => {
    const kind = request.headers.get("Accept") === "text/event-stream" ? "stream" : "page";
    this.asked.push(`${kind} ${new URL(request.url).search}`);
    const status = this.status[kind];
    if (status === 0) return Promise.reject(new TypeError("Failed to fetch"));
    if (status !== 200) return Promise.resolve(Response.json({ error: { message: `status ${status}` } }, { status }));
    if (kind === "page") {
      const data = this.events.splice(0);
      return Promise.resolve(Response.json({ object: "list", data, last_position: this.last, has_more: false }));
    }
    const body = new ReadableStream<Uint8Array>({ start: (controller) => void this.streams.push(controller) });
    request.signal.addEventListener("abort", () => this.streams.at(-1)?.error(new DOMException("aborted", "AbortError")));
    this.send(": the events of a project\n\n");
    return Promise.resolve(new Response(body));
  };

  send(text: string) {
    this.streams.at(-1)!.enqueue(new TextEncoder().encode(text));
  }

  event(event: object, position: number) {
    this.send(`id: ${position}\nevent: batch.completed\ndata: ${JSON.stringify({ ...event, position })}\n\n`);
  }
}

/** Locks and channels of one browser: the first tab that asks for the lock holds it. */
class Browser {
  private queue: Promise<void> = Promise.resolve();
  channels: FakeChannel[] = [];

  locks = {
    request: (_name: string, { signal }: { signal: AbortSignal }, work: () => Promise<void>) => {
      const turn = this.queue.then(() => (signal.aborted ? undefined : work()));
      this.queue = turn;
      return turn;
    },
  };
}

class FakeChannel {
  onmessage: ((event: { data: unknown }) => void) | null = null;
  constructor(readonly name: string) {
    browser.channels.push(this);
  }
  postMessage(data: unknown) {
    for (const each of browser.channels) if (each !== this && each.name === this.name) each.onmessage?.({ data: structuredClone(data) });
  }
  close() {
    browser.channels = browser.channels.filter((each) => each !== this);
  }
}

let server: Server;
let browser: Browser;
let stops: (() => void)[];

/** Open a tab: modules of its own, as each tab of a browser has them. */
async function openTab(): Promise<Tab & { invalidated: ReturnType<typeof vi.fn> }> {
  vi.resetModules();
  const session = await import("@/api/session");
  const client = await import("@/api/client");
  const feed = await import("@/api/feed");
  session.signIn("nm_project");
  const invalidated = vi.fn(() => Promise.resolve());
  client.queries.invalidateQueries = invalidated;
  stops.push(feed.startFeed("nm_project"));
  await settle();
  return { feed, client, session, invalidated };
}

/** Let what waits for no clock happen. */
async function settle(milliseconds = 0) {
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve));
  await vi.advanceTimersByTimeAsync(milliseconds);
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve));
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  server = new Server();
  browser = new Browser();
  stops = [];
  vi.stubGlobal("fetch", server.answer);
  vi.stubGlobal("BroadcastChannel", FakeChannel);
  vi.stubGlobal("crypto", { subtle: { digest: () => Promise.resolve(new ArrayBuffer(32)) } });
  Object.defineProperty(navigator, "locks", { value: browser.locks, configurable: true });
});

afterEach(() => {
  for (const stop of stops) stop();
  vi.useRealTimers();
});

it("follows the stream behind the last event, and asks anew for what an event changed", async () => {
  const tab = await openTab();
  expect(server.asked).toEqual(["page ?after=latest", "stream ?after=7"]);

  server.event(JOB, 8);
  server.event({ ...JOB, id: "evt_2" }, 9);
  await settle(1_000);

  expect(tab.invalidated).toHaveBeenCalledTimes(1);
  const { predicate } = tab.invalidated.mock.calls[0]![0] as { predicate: (query: { queryKey: unknown[] }) => boolean };
  expect(predicate({ queryKey: ["/v1/jobs", { state: "failed" }] })).toBe(true);
  expect(predicate({ queryKey: ["/v1/jobs/{job_id}/results", { job_id: "batch_1" }] })).toBe(true);
  expect(predicate({ queryKey: ["/v1/jobs/{job_id}", { job_id: "batch_2" }] })).toBe(false);
  expect(predicate({ queryKey: ["/v1/jobsters"] })).toBe(false);
  expect(predicate({ queryKey: ["/v1/evals"] })).toBe(false);

  server.streams.at(-1)!.close();
  await settle(5_000);
  expect(server.asked.slice(2)).toEqual(["page ?after=9", "stream ?after=7"]);
});

it("asks anew for the model that an event is about", async () => {
  const tab = await openTab();
  const data = { id: "mmove_1", model: "ft:base:acme::1" };
  server.event({ ...JOB, type: "model.version.staged", subject_id: "mmove_1", data }, 8);
  await settle(1_000);

  const { predicate } = tab.invalidated.mock.calls[0]![0] as { predicate: (query: { queryKey: unknown[] }) => boolean };
  const moves = (model_version: string) => ({ queryKey: ["/v1/model_versions/{model_version}/moves", { path: { model_version } }] });
  expect([predicate(moves("ft:base:acme::1")), predicate(moves("ft:base:acme::2"))]).toEqual([true, false]);
});

it.each([
  ["job.running", ["/v1/jobs", "/v1/batches", "/v1/throughput", "/v1/schedules"]],
  ["batch.failed", ["/v1/jobs", "/v1/batches", "/v1/throughput", "/v1/files"]],
  ["response.incomplete", ["/v1/jobs", "/v1/responses"]],
  ["vector_store.file_batch.completed", ["/v1/jobs", "/v1/vector_stores"]],
  ["vector_store.source.synced", ["/v1/jobs", "/v1/vector_stores"]],
  ["fine_tuning.job.succeeded", ["/v1/jobs", "/v1/fine_tuning/jobs", "/v1/models", "/v1/files"]],
  ["eval.run.canceled", ["/v1/jobs", "/v1/evals"]],
  ["webhook_endpoint.disabled", ["/v1/webhook_endpoints"]],
  ["model.version.staged", ["/v1/model_versions"]],
  ["model.alias.moved", ["/v1/aliases", "/v1/alias_moves"]],
  ["promotion.refused", ["/v1/jobs", "/v1/promotions", "/v1/aliases", "/v1/vector_stores"]],
  ["drift.detected", ["/v1/jobs", "/v1/drift_monitors"]],
])("by an event %s asks anew for %j alone", async (type, paths) => {
  const tab = await openTab();
  server.event({ ...JOB, type }, 8);
  await settle(1_000);

  const { predicate } = tab.invalidated.mock.calls[0]![0] as { predicate: (query: { queryKey: unknown[] }) => boolean };
  const all = ["jobs", "batches", "throughput", "schedules", "files", "responses", "vector_stores", "fine_tuning/jobs", "models", "evals", "webhook_endpoints", "model_versions", "aliases", "alias_moves", "promotions", "drift_monitors"];
  const changed = all.map((resource) => `/v1/${resource}`).filter((path) => predicate({ queryKey: [path] }));
  expect(changed.sort()).toEqual([...paths].sort());
});

it("holds one connection for two tabs; the second goes on behind the last event when the first is closed", async () => {
  const first = await openTab();
  const second = await openTab();
  expect(server.asked.filter((each) => each.startsWith("stream"))).toHaveLength(1);

  server.event(JOB, 8);
  await settle(1_000);
  expect(first.invalidated).toHaveBeenCalledTimes(1);
  expect(second.invalidated).toHaveBeenCalledTimes(1);

  server.last = 8;
  stops[0]!();
  await settle();
  expect(server.asked.slice(2)).toEqual(["page ?after=8", "stream ?after=8"]);
});

it("polls where streams are refused", async () => {
  server.status.stream = 429;
  const tab = await openTab();
  server.events = [{ ...JOB, position: 8 }];
  server.last = 8;
  await settle(5_000);
  await settle(1_000);

  expect(server.asked).toEqual(["page ?after=latest", "stream ?after=7", "page ?after=7", "stream ?after=8"]);
  expect(tab.invalidated).toHaveBeenCalledTimes(1);
});

it("polls in every tab where the browser has no locks", async () => {
  Object.defineProperty(navigator, "locks", { value: undefined, configurable: true });
  await openTab();
  await settle(5_000);
  await settle(5_000);

  expect(server.asked).toEqual(["page ?after=latest", "page ?after=7", "page ?after=7"]);
});

describe("a server that is away", () => {
  it("is asked again, less and less often, and everything is asked anew when it is back", async () => {
    server.status = { page: 0, stream: 0 };
    const tab = await openTab();
    await settle(1_000);
    await settle(2_000);
    await settle(3_999);
    expect(server.asked).toHaveLength(3);
    expect(tab.invalidated).not.toHaveBeenCalled();

    server.status = { page: 200, stream: 200 };
    await settle(1);
    expect(server.asked.at(-1)).toBe("stream ?after=7");
    expect(tab.invalidated).toHaveBeenCalledWith();
  });

  it("is noticed by its silence", async () => {
    await openTab();
    await settle(59_000);
    server.send(": alive\n");
    await settle(59_000);
    expect(server.asked).toHaveLength(2);

    await settle(1_000);
    await settle(1_000);
    expect(server.asked.slice(2)).toEqual(["page ?after=7", "stream ?after=7"]);
  });
});

it.each([400, 410])("begins anew when the position is refused with %d", async (status) => {
  const tab = await openTab();
  server.status.page = status;
  server.streams.at(-1)!.close();
  await settle(5_000);
  server.status.page = 200;
  await settle(5_000);

  expect(server.asked.slice(2)).toEqual(["page ?after=7", "page ?after=latest", "stream ?after=7"]);
  expect(tab.invalidated).toHaveBeenCalledWith();
});

it("ends with the session when the key is revoked", async () => {
  const tab = await openTab();
  server.status.page = 401;
  server.streams.at(-1)!.close();
  await settle(5_000);
  await settle(60_000);

  expect(server.asked).toHaveLength(3);
  expect(tab.session.currentSession()).toMatchObject({ key: null, refusal: "status 401" });
});
