import { expect, it } from "vitest";

import { readEvents } from "@/api/sse";

async function read(chunks: Uint8Array[]) {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  return Array.fromAsync(readEvents(body));
}

const TEXT = ': hello\n\nid: 1\nevent: job.running\ndata: {"text":"Größe"}\n\n: alive\ndata: a\r\ndata:b\r\n\r\ndata: [DONE]\n\nid: 9\ndata: cut';
const EVENTS = [
  { id: "1", event: "job.running", data: '{"text":"Größe"}' },
  { id: "1", event: "message", data: "a\nb" },
  { id: "1", event: "message", data: "[DONE]" },
];

it.each([1, 2, 3, 7, 1_000])("reads the same events from pieces of %d bytes", async (size) => {
  const bytes = new TextEncoder().encode(TEXT);
  const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) => bytes.slice(index * size, (index + 1) * size));

  expect(await read(pieces)).toEqual(EVENTS);
});
