/**
 * The keys of requests whose outcome is not known: in flight, or without an answer.
 *
 * A request that is sent again meanwhile carries the same key, and the server gives the first answer instead of doing it
 * twice: a double click, or another try after a lost answer. A request that was answered can be made anew.
 */
const unanswered = new Map<string, string>();

/** Milliseconds after which a request without an answer is taken for another one. */
const REMEMBERED = 600_000;

/**
 * Send a request that may change something, with a key under which it happens once; `isUnknown` judges its error.
 *
 * A request that has a key of its own is sent with it.
 */
export async function sendOnce(request: Request, send: (request: Request) => Promise<Response>, isUnknown: (error: unknown) => boolean): Promise<Response> {
  if (request.headers.has("Idempotency-Key")) return send(request);
  const content = `${request.url}\n${await request.clone().text()}`;
  const key = unanswered.get(content) ?? newIdempotencyKey();
  const forget = () => unanswered.get(content) === key && unanswered.delete(content);
  unanswered.set(content, key);
  request.headers.set("Idempotency-Key", key);
  try {
    const answer = await send(request);
    forget();
    return answer;
  } catch (error) {
    if (isUnknown(error)) setTimeout(forget, REMEMBERED);
    else forget();
    throw error;
  }
}

/**
 * Return a new key for a request that must happen once.
 *
 * `crypto.randomUUID` is there only on secure origins, and a console on a local network is none.
 */
export function newIdempotencyKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
