/** An event of a stream of server-sent events. */
interface ServerEvent {
  id: string;
  event: string;
  data: string;
}

/**
 * Read server-sent events from the body of an answer until it ends.
 *
 * `onBytes` is called for all that arrives, comments included: they show that the connection lives.
 */
export async function* readEvents(body: ReadableStream<Uint8Array>, onBytes?: () => void): AsyncGenerator<ServerEvent> {
  let event: ServerEvent = { id: "", event: "message", data: "" };
  for await (const line of readLines(body, onBytes)) {
    if (line !== "") addLine(event, line);
    else if (event.data !== "") {
      yield { ...event, data: event.data.slice(1) };
      event = { id: event.id, event: "message", data: "" };
    }
  }
}

/**
 * Yield the data of each event, decoded from JSON, until the stream ends or says `[DONE]`.
 *
 * Raises: SyntaxError where the data of an event is not JSON.
 */
export async function* readChunks(body: ReadableStream<Uint8Array>): AsyncGenerator<unknown> {
  for await (const { data } of readEvents(body)) {
    if (data === "[DONE]") return;
    yield JSON.parse(data);
  }
}

/** Add a line to an event. Each line of data is kept with a line break before it. */
function addLine(event: ServerEvent, line: string): void {
  const colon = line.indexOf(":");
  const [name, value] = colon < 0 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
  if (name === "data") event.data += `\n${value}`;
  else if (name === "event") event.event = value;
  else if (name === "id") event.id = value;
}

/** Yield the lines of a stream of UTF-8. Each byte is looked at once, however long a line is. */
async function* readLines(body: ReadableStream<Uint8Array>, onBytes?: () => void): AsyncGenerator<string> {
  const reader = body.getReader(); // Safari cannot iterate over a stream
  const decoder = new TextDecoder();
  let pieces: string[] = [];
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      onBytes?.();
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
