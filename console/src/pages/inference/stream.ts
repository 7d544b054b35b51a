/**
 * Yield the data of each event of a stream of server-sent events, decoded from JSON, until the stream ends or says
 * `[DONE]`.
 *
 * Raises: SyntaxError where the data of an event is not JSON.
 */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<unknown> {
  let data: string[] = [];
  for await (const line of readLines(body)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    if (line !== "" || data.length === 0) continue;
    const text = data.join("\n");
    data = [];
    if (text === "[DONE]") return;
    yield JSON.parse(text);
  }
}

/** Yield the lines of a stream of UTF-8. Each byte is looked at once, however long a line is. */
async function* readLines(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader(); // Safari cannot iterate over a stream
  const decoder = new TextDecoder();
  let pieces: string[] = [];
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      const [first = "", ...rest] = decoder.decode(read.value, { stream: true }).split("\n");
      pieces.push(first);
      for (const piece of rest) {
        yield pieces.join("").replace(/\r$/, "");
        pieces = [piece];
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
