/** An event of a stream of server-sent events. */
export interface ServerEvent {
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
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event: ServerEvent = { id: "", event: "message", data: "" };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes?.();
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line !== "") addLine(event, line);
        else if (event.data !== "") {
          yield { ...event, data: event.data.slice(1) };
          event = { id: event.id, event: "message", data: "" };
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
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
