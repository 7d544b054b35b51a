// @vitest-environment node

import { describe, expect, it } from "vitest";

import { answerText, cut } from "@/pages/jobs/cut";
import { cancellable, hasResults, isBatch, isLive, kindLabel, lifeline, mayCancel, mayRetry, retryable, type JobObject } from "@/pages/jobs/life";
import { fromLocalInput, toLocalInput } from "@/components/address";
import { layers, type GraphNode } from "@/components/layers";
import { waitOf } from "@/pages/jobs/waiting";
import { jobSearch, jobsSearch, metadataPairs } from "@/pages/jobs/address";

const NO_TIMES = {
  in_progress_at: null,
  finalizing_at: null,
  completed_at: null,
  failed_at: null,
  expiring_at: null,
  expired_at: null,
  cancelling_at: null,
  cancelled_at: null,
};

describe("the life of a job", () => {
  it("lists the states that it has been in, with how long it stayed", () => {
    const job = { ...NO_TIMES, created_at: 10, in_progress_at: 12, finalizing_at: 72, completed_at: 72 } as JobObject;
    expect(lifeline(job)).toEqual([
      { state: "queued", at: 10, seconds: 2 },
      { state: "running", at: 12, seconds: 60 },
      { state: "finishing", at: 72, seconds: 0 },
      { state: "succeeded", at: 72, seconds: null },
    ]);
    expect(lifeline({ ...NO_TIMES, created_at: 10 } as JobObject)).toEqual([{ state: "queued", at: 10, seconds: null }]);
  });

  it.each([
    ["queued", true, true, false],
    ["running", true, true, false],
    ["cancelling", true, false, false],
    ["failed", false, false, true],
    ["succeeded", false, false, true],
  ])("of a job that is %s says what can be done", (state, live, cancel, retry) => {
    const job = { state, kind: "generation" };
    expect([isLive(job), mayCancel(job), mayRetry(job)]).toEqual([live, cancel, retry]);
    expect(mayRetry({ state, kind: "response" })).toBe(false);
  });

  it.each([
    ["reranking", "Batch of rankings", true, true, true],
    ["response", "Background response", false, true, false],
    ["ingestion", "Files of a vector store", false, false, true],
    ["finetuning", "Fine-tuning", false, false, true],
    ["sampling", "Samples of an evaluation", false, false, false],
    ["of_a_later_version", "of a later version", false, false, true],
  ])("knows what is special of the kind %s", (kind, label, batch, results, retry) => {
    const job = { kind, state: "failed" };
    expect([kindLabel(kind), isBatch(job), hasResults(job), mayRetry(job)]).toEqual([label, batch, results, retry]);
  });
});

describe("of selected jobs", () => {
  const job = (id: string, state: string, failed = 0, kind = "generation") => ({ id, state, kind, progress: { failed } }) as JobObject;
  const jobs = [job("a", "queued"), job("b", "succeeded"), job("c", "succeeded", 2), job("d", "cancelled"), job("e", "failed", 0, "response")];

  it("only those are cancelled or retried that can be", () => {
    expect(cancellable(jobs).map(({ id }) => id)).toEqual(["a"]);
    expect(retryable(jobs).map(({ id }) => id)).toEqual(["c", "d"]);
  });
});

describe("a job waits", () => {
  const waiter = (changes: object) => ({ id: "batch_1", state: "running", model: "m", model_status: null, waiting_for: null, ...changes }) as JobObject;

  it.each([
    [{}, null],
    [{ state: "succeeded" }, null],
    [{ state: "queued" }, "no worker has taken it up yet"],
    [{ model_status: { status: "loading", model: "m", phase: "weights", since: 7 } }, "the model is loading"],
    [{ model_status: { status: "no_worker", model: "m", phase: null, since: null } }, "no live worker serves m"],
    [{ waiting_for: "waiting_for_model", model: null }, "no live worker serves its model"],
    [{ waiting_for: "waiting_for_pause" }, "its queue, model or project is paused"],
    [{ waiting_for: "waiting_for_spend_limit" }, "the spend limit of this month is reached"],
    [{ waiting_for: "waiting_for_something_new" }, "waiting for something new"],
  ])("as %j says", (changes, text) => expect(waitOf(waiter(changes))?.text ?? null).toBe(text));

  it("with a page where something can be done", () => {
    const pages = ["waiting_for_model", "waiting_for_job", "waiting_for_disk"].map((waiting_for) => waitOf(waiter({ waiting_for }))?.action?.link.to);
    expect(pages).toEqual(["/models", "/jobs/$jobId", undefined]);
    expect(waitOf(waiter({ model_status: { status: "loading", model: "m", phase: null, since: 7 } }))?.since).toBe(7);
  });
});

describe("the addresses of jobs", () => {
  it("may hold anything", () => {
    expect(jobsSearch({ kind: 7, state: "", model: ["m"], metadata: "a=b", since: "12", until: -1, other: "x" })).toEqual({
      kind: "7",
      state: undefined,
      model: undefined,
      metadata: "a=b",
      since: 12,
      until: undefined,
    });
    expect(jobSearch({ tab: "nothing", outcome: "odd", code: 404, custom_id: 12, after: null })).toEqual({
      tab: undefined,
      outcome: undefined,
      code: "404",
      custom_id: "12",
      after: undefined,
    });
    expect(jobSearch({ tab: "results", outcome: "failed" })).toMatchObject({ tab: "results", outcome: "failed" });
  });

  it("hold metadata as entries", () => {
    expect(metadataPairs(" team = search, a=b=c,, alone ")).toEqual([["team", "search"], ["a", "b=c"], ["alone", ""]]);
    expect(metadataPairs("")).toEqual([]);
    expect(metadataPairs('note="a, b", "a=b, c"=d,x="say ""yes""",size=5" disk, y="open')).toEqual([
      ["note", "a, b"],
      ["a=b, c", "d"],
      ["x", 'say "yes"'],
      ["size", '5" disk'],
      ["y", '"open'],
    ]);
  });

  it("hold times that mean the same in every zone", () => {
    const time = 1_795_000_000 - (1_795_000_000 % 60);
    expect(fromLocalInput(toLocalInput(time))).toBe(time);
    expect([toLocalInput(undefined), fromLocalInput("")]).toEqual(["", undefined]);
  });
});

describe("texts of models", () => {
  it("are cut, without tearing a character", () => {
    expect(cut("short", 5)).toEqual({ shown: "short", left: 0 });
    expect(cut("long text", 4)).toEqual({ shown: "long", left: 5 });
    expect(cut("ab😀c", 3)).toEqual({ shown: "ab", left: 3 });
    expect(cut("x".repeat(10_000_000), 100)).toMatchObject({ left: 9_999_900 });
  });

  it("show the beginning of a vector", () => {
    expect(answerText([0.5, -1])).toBe("[0.5000, -1.000] (2 dimensions)");
    expect(answerText(Array.from({ length: 384 }, () => 1))).toContain(", …] (384 dimensions)");
    expect([answerText("text"), answerText(null)]).toEqual(["text", null]);
  });
});

describe("a graph of jobs", () => {
  const job = (id: string, ...after: string[]): GraphNode => ({ id, after });
  const ids = (jobs: GraphNode[]) => layers(jobs).map((layer) => layer.map(({ id }) => id));

  it("shows each job behind those that it waits for", () => {
    expect(ids([job("d", "b", "c"), job("a"), job("b", "a"), job("c", "b"), job("x")])).toEqual([["a", "x"], ["b"], ["c"], ["d"]]);
    expect(ids([job("a", "not shown")])).toEqual([["a"]]);
  });

  it("of two hundred links is laid out at once", () => {
    const chain = Array.from({ length: 200 }, (_, n) => job(`${n}`, ...(n > 0 ? [`${n - 1}`] : []), ...(n > 1 ? [`${n - 2}`] : [])));
    expect(layers(chain.reverse())).toHaveLength(200);
  });
});
