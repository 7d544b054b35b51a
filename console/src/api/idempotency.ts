/**
 * Return a new key for a request that must happen once: a repeated request with the same key gets the first answer.
 *
 * `crypto.randomUUID` is there only on secure origins, and a console on a local network is none.
 */
export function newIdempotencyKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
