import { expect, it } from "vitest";

import { readChunks, readEvents } from "@/api/sse";

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

async function read(text: string, size: number) {
  return Array.fromAsync(readEvents(streamOf(text, size)));
}

const TEXT = ': hello\n\nid: 1\nevent: job.running\ndata: {"text":"Größe"}\n\n: alive\ndata: a\r\ndata:b\r\n\r\ndata: [DONE]\n\nid: 9\ndata: cut';
const EVENTS = [
  { id: "1", event: "job.running", data: '{"text":"Größe"}' },
  { id: "1", event: "message", data: "a\nb" },
  { id: "1", event: "message", data: "[DONE]" },
];

it.each([1, 2, 3, 7, 1_000])("reads the same events from pieces of %d bytes", async (size) => {
  expect(await read(TEXT, size)).toEqual(EVENTS);
});

async function all(body: ReadableStream<Uint8Array>): Promise<unknown[]> {
  const events: unknown[] = [];
  for await (const event of readChunks(body)) events.push(event);
  return events;
}

const CHUNKS = 'event: x\nid: 1\ndata: {"a":"ü😀"}\n\n: a comment\n\ndata:{"b":\ndata: 2}\r\n\r\ndata: [DONE]\n\ndata: {"late":1}\n\n';

it.each([1, 2, 3, 7, Infinity])("reads chunks whose bytes arrive %d at a time", async (size) => {
  expect(await all(streamOf(CHUNKS, size))).toEqual([{ a: "ü😀" }, { b: 2 }]);
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
  for await (const event of readChunks(endless)) {
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
