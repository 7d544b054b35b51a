import { expect, it } from "vitest";

import { addChatChunk, addResponseEvent, EMPTY_ANSWER, excerptOf } from "@/pages/inference/answer";
import { readEvents } from "@/pages/inference/stream";

/** Return a stream of bytes in pieces of `size`. */
function streamOf(text: string, size = Infinity): ReadableStream<Uint8Array> {
  const bytes = new TextEncoder().encode(text);
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close();
      controller.enqueue(bytes.slice(at, at + size));
      at += size;
    },
  });
}

async function all(body: ReadableStream<Uint8Array>): Promise<unknown[]> {
  const events: unknown[] = [];
  for await (const event of readEvents(body)) events.push(event);
  return events;
}

const EVENTS = 'event: x\nid: 1\ndata: {"a":"ü😀"}\n\n: a comment\n\ndata:{"b":\ndata: 2}\r\n\r\ndata: [DONE]\n\ndata: {"late":1}\n\n';

it.each([1, 2, 3, 7, Infinity])("reads events whose bytes arrive %d at a time", async (size) => {
  expect(await all(streamOf(EVENTS, size))).toEqual([{ a: "ü😀" }, { b: 2 }]);
});

it("leaves out an event that is cut off, and refuses one that is not JSON", async () => {
  expect(await all(streamOf('data: 1\n\ndata: {"half"'))).toEqual([1]);
  await expect(all(streamOf("data: {no\n\n"))).rejects.toThrow(SyntaxError);
});

it("cancels the stream when the reader stops", async () => {
  let isCancelled = false;
  const endless = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: 1\n\n")),
    cancel: () => {
      isCancelled = true;
    },
  });
  for await (const event of readEvents(endless)) {
    expect(event).toBe(1);
    break;
  }
  expect(isCancelled).toBe(true);
});

it("reads an event of ten megabytes on one line", async () => {
  const text = "x".repeat(10_000_000);
  const [event] = await all(streamOf(`data: {"text":"${text}"}\n\n`, 65_536));
  expect((event as { text: string }).text).toHaveLength(text.length);
});

it("adds up the chunks of a chat completion", () => {
  const chunks = [
    { choices: [{ delta: { role: "assistant", content: "" } }] },
    { choices: [{ delta: { content: "Li" } }] },
    { choices: [{ delta: { content: "ma" }, finish_reason: "stop" }] },
    { choices: [], usage: { prompt_tokens: 5, completion_tokens: 2 } },
  ];
  expect(chunks.reduce(addChatChunk, EMPTY_ANSWER)).toEqual({ ...EMPTY_ANSWER, text: "Lima", finish: "stop", inputTokens: 5, outputTokens: 2 });
});

it("adds up the events of a response, with its citations", () => {
  const citation = { type: "file_citation", index: 4, file_id: "file-1", filename: "a.md", start: 0, end: 9, support: 0.5 };
  const events = [
    { type: "response.created", response: {} },
    { type: "response.output_text.delta", delta: "Li" },
    { type: "response.output_text.delta", delta: "ma" },
    {
      type: "response.completed",
      response: {
        output: [{ type: "file_search_call" }, { content: [{ type: "output_text", annotations: [citation, { type: "url_citation" }] }] }],
        usage: { input_tokens: 5, output_tokens: 2 },
      },
    },
  ];
  const answer = events.reduce(addResponseEvent, EMPTY_ANSWER);
  expect(answer).toMatchObject({ text: "Lima", finish: "completed", citations: [citation], inputTokens: 5, outputTokens: 2 });
});

it("shows a refusal as one, and an answer that was cut off", () => {
  const refused = addResponseEvent(EMPTY_ANSWER, { type: "response.refusal.delta", delta: "No." });
  expect(refused).toMatchObject({ text: "No.", isRefusal: true });
  const cut = addResponseEvent(EMPTY_ANSWER, { type: "response.incomplete", response: { incomplete_details: { reason: "max_output_tokens" } } });
  expect(cut.finish).toBe("max_output_tokens");
});

it.each([
  [addChatChunk, { error: { message: "Broken.", code: "engine_died" } }],
  [addResponseEvent, { type: "error", message: "Broken.", code: "engine_died" }],
  [addResponseEvent, { type: "response.failed", response: { error: { message: "Broken.", code: "engine_died" } } }],
])("raises the error of a stream", (add, event) => {
  expect(() => add(EMPTY_ANSWER, event)).toThrow(expect.objectContaining({ message: "Broken.", code: "engine_died" }) as Error);
});

it("cuts an excerpt by code points", () => {
  expect(excerptOf("😀ab😀cd😀", 3, 5, 2)).toEqual({ before: "ab", text: "😀c", after: "d😀" });
  expect(excerptOf("short", 0, 100)).toEqual({ before: "", text: "short", after: "" });
});
