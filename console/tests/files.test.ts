import { afterEach, beforeEach, expect, it, vi } from "vitest";

import { signIn } from "@/api/session";
import { firstLines } from "@/pages/files/content";
import { sendFile } from "@/pages/files/uploads";

const bytes = (text: string) => new TextEncoder().encode(text);

it("shows the first lines of a text, and says when there is more", () => {
  expect(firstLines(bytes("a\nb\n"), 4)).toEqual({ lines: ["a", "b"], isCut: false });
  expect(firstLines(bytes("a\nb\nhal"), 100)).toEqual({ lines: ["a", "b"], isCut: true });
  expect(firstLines(bytes(""), 0)).toEqual({ lines: [], isCut: false });
  const many = firstLines(bytes("x\n".repeat(60)), 120);
  expect([many.lines?.length, many.isCut]).toEqual([50, true]);
});

it("cuts a huge line, and shows no content that is not text", () => {
  const { lines, isCut } = firstLines(bytes("x".repeat(60_000)), 10_000_000);
  expect([lines?.length, lines?.[0]?.length, isCut]).toEqual([1, 2_002, true]);
  expect(firstLines(new Uint8Array([80, 75, 3, 4, 0, 1]), 6).lines).toBeNull();
  expect(firstLines(new Uint8Array(100).fill(0xff), 100).lines).toBeNull();
});

interface Sent {
  method: string;
  path: string;
  body: unknown;
}

let sent: Sent[];
let failures: Record<string, number>;

/** Answer as the server does: an id for each thing that is made, or a failure as often as `failures` says. */
async function answer(input: RequestInfo | URL): Promise<Response> {
  const request = input as Request;
  request.signal.throwIfAborted();
  const path = new URL(request.url).pathname;
  const isForm = request.headers.get("content-type")?.startsWith("multipart/") ?? false;
  sent.push({ method: request.method, path, body: isForm ? null : await request.json().catch(() => null) });
  const left = failures[path] ?? 0;
  failures[path] = left - 1;
  if (left > 0) return Response.json({ error: { message: "Busy." } }, { status: 503 });
  if (path.endsWith("/parts")) return Response.json({ id: `part_${sent.filter((each) => each.path === path).length}` });
  if (path.endsWith("/complete")) return Response.json({ file: { id: "file-1" } });
  return Response.json({ id: path === "/v1/files" ? "file-1" : "upload_1" });
}

beforeEach(() => {
  sent = [];
  failures = {};
  signIn("nm_key");
  vi.stubGlobal("fetch", vi.fn(answer));
});

afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

/** The time that a machine which does other work may need. */
const PATIENT = { timeout: 30_000 };
const paths = () => sent.map(({ method, path }) => `${method} ${path}`);

it("sends a small file in one request", async () => {
  const arrived: number[] = [];
  const file = await sendFile(new File(["abc"], "a.txt"), "batch", new AbortController().signal, (count) => arrived.push(count));
  expect([file.id, paths(), arrived]).toEqual(["file-1", ["POST /v1/files"], [3]]);
});

it("sends a large file in parts, tries a part again, and completes it with all parts in order", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout"] });
  failures["/v1/uploads/upload_1/parts"] = 1;
  const arrived: number[] = [];
  const sending = sendFile(new File([new Uint8Array(40_000_000)], "a.bin"), "batch", new AbortController().signal, (count) => arrived.push(count));
  await vi.waitFor(() => vi.advanceTimersByTime(1_000) && expect(sent.at(-1)?.path).toBe("/v1/uploads/upload_1/complete"), PATIENT);
  expect((await sending).id).toBe("file-1");
  expect(sent[0]?.body).toMatchObject({ bytes: 40_000_000, filename: "a.bin", purpose: "batch" });
  expect(paths().filter((path) => path.endsWith("/parts"))).toHaveLength(4);
  expect((sent.at(-1)?.body as { part_ids: string[] }).part_ids).toHaveLength(3);
  expect(arrived.toSorted()).toEqual([16_000_000, 16_000_000, 8_000_000]);
});

it("waits for a server that is away, and sends the file again with the same key", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout"] });
  const keys: (string | null)[] = [];
  vi.stubGlobal("fetch", (input: Request) => {
    keys.push(input.headers.get("Idempotency-Key"));
    return keys.length < 8 ? Promise.reject(new TypeError("Failed to fetch")) : answer(input);
  });
  const sending = sendFile(new File(["abc"], "a.txt"), "batch", new AbortController().signal, () => undefined);
  await vi.waitFor(() => vi.advanceTimersByTime(5_000) && expect(keys).toHaveLength(8));
  expect((await sending).id).toBe("file-1");
  expect(new Set(keys).size).toBe(1);
});

it("cancels an upload on the server when its sending ends", async () => {
  const controller = new AbortController();
  const sending = sendFile(new File([new Uint8Array(40_000_000)], "a.bin"), "batch", controller.signal, () => controller.abort());
  await expect(sending).rejects.toThrow();
  await vi.waitFor(() => expect(paths()).toContain("POST /v1/uploads/upload_1/cancel"), PATIENT);
  expect(paths()).not.toContain("POST /v1/uploads/upload_1/complete");
});
