import { useSyncExternalStore } from "react";

import { api, ApiError, mayPass, request, take, type Schema } from "@/api/client";
import { refresh } from "@/api/get";
import { newIdempotencyKey } from "@/api/idempotency";

export type FileObject = Schema<"FileObject">;
export type Purpose = Schema<"CreateUpload">["purpose"];

/** The purposes of files with what each is for. */
export const PURPOSES: readonly (readonly [purpose: Purpose, label: string])[] = [
  ["batch", "Batch"],
  ["assistants", "Documents"],
  ["fine-tune", "Fine-tuning"],
  ["evals", "Evaluation"],
  ["user_data", "User data"],
  ["vision", "Vision"],
];

/** A file up to this size is sent in one request, a larger one in parts of this size. */
const PART_BYTES = 16_000_000;
const PARTS_AT_ONCE = 3;
const FILES_AT_ONCE = 2;
const TRIES = 4;
/** Milliseconds between two tries of a request at most. */
const LONGEST_WAIT = 5_000;

/** A file that this tab sends. It stays listed until it is dismissed, or until it is there. */
export interface Upload {
  readonly id: number;
  readonly name: string;
  readonly bytes: number;
  readonly sent: number;
  readonly state: "waiting" | "sending" | "failed" | "cancelled";
  readonly error: Error | null;
}

/**
 * Send a file and return its object. `onSent` receives the bytes of each part that has arrived.
 *
 * While the server cannot be reached, the upload waits and goes on when it is back.
 *
 * Raises: ApiError, and an AbortError when `signal` is aborted. The parts of a broken upload are deleted.
 */
export async function sendFile(file: File, purpose: Purpose, signal: AbortSignal, onSent: (bytes: number) => void): Promise<FileObject> {
  if (file.size > PART_BYTES) return sendInParts(file, purpose, signal, onSent);
  const form = new FormData();
  form.append("purpose", purpose);
  form.append("file", file, file.name);
  const headers = { "Idempotency-Key": newIdempotencyKey() };
  const answer = await persist(signal, () => request("/v1/files", { method: "POST", body: form, headers, signal }));
  onSent(file.size);
  return (await answer.json()) as FileObject;
}

async function sendInParts(file: File, purpose: Purpose, signal: AbortSignal, onSent: (bytes: number) => void): Promise<FileObject> {
  const body = { bytes: file.size, filename: file.name, mime_type: file.type || "application/octet-stream", purpose };
  // A key of its own: another file may have the same name and size.
  const header = { "Idempotency-Key": newIdempotencyKey() };
  const { id } = await persist(signal, () => take(api.POST("/v1/uploads", { params: { header }, body, signal })));
  const params = { path: { upload_id: id } };
  try {
    const part_ids = await sendParts(id, file, signal, onSent);
    const upload = await persist(signal, () => take(api.POST("/v1/uploads/{upload_id}/complete", { params, body: { part_ids }, signal })));
    return upload.file!;
  } catch (error) {
    // Without an answer the server deletes the parts after an hour.
    await api.POST("/v1/uploads/{upload_id}/cancel", { params }).catch(() => undefined);
    throw error;
  }
}

/** Send the parts of a file, a few at a time, and return their ids in order. The first failure ends the others. */
async function sendParts(uploadId: string, file: File, signal: AbortSignal, onSent: (bytes: number) => void): Promise<string[]> {
  const failure = new AbortController();
  const either = AbortSignal.any([signal, failure.signal]);
  const ids: string[] = new Array<string>(Math.ceil(file.size / PART_BYTES));
  let next = 0;
  async function work() {
    while (next < ids.length) {
      const index = next++;
      const part = file.slice(index * PART_BYTES, (index + 1) * PART_BYTES);
      ids[index] = await sendPart(uploadId, part, either);
      onSent(part.size);
    }
  }
  try {
    await Promise.all(Array.from({ length: PARTS_AT_ONCE }, work));
  } catch (error) {
    failure.abort();
    throw error;
  }
  return ids;
}

async function sendPart(uploadId: string, part: Blob, signal: AbortSignal): Promise<string> {
  const form = new FormData();
  form.append("data", part);
  const answer = await persist(signal, () => request(`/v1/uploads/${uploadId}/parts`, { method: "POST", body: form, signal }));
  return ((await answer.json()) as { id: string }).id;
}

/** Send a request until it is answered: a few times, and for as long as it takes while the server cannot be reached. */
async function persist<Answer>(signal: AbortSignal, send: () => Promise<Answer>): Promise<Answer> {
  for (let failures = 1; ; failures++) {
    try {
      return await send();
    } catch (error) {
      const isAway = error instanceof ApiError && error.status === 0;
      if (signal.aborted || !mayPass(error) || (failures >= TRIES && !isAway)) throw error;
      await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** failures, LONGEST_WAIT)));
    }
  }
}

let uploads: readonly Upload[] = [];
let lastId = 0;
const controllers = new Map<number, AbortController>();
const listeners = new Set<() => void>();

function show(next: readonly Upload[]): void {
  uploads = next;
  if (next.some(isActive)) addEventListener("beforeunload", askToStay);
  else removeEventListener("beforeunload", askToStay);
  for (const listener of listeners) listener();
}

/** Have the browser ask before the tab is left, which would end the uploads. */
function askToStay(event: BeforeUnloadEvent): void {
  event.preventDefault();
}

function isActive({ state }: Upload): boolean {
  return state === "waiting" || state === "sending";
}

function change(id: number, next: (upload: Upload) => Partial<Upload>): void {
  show(uploads.map((upload) => (upload.id === id ? { ...upload, ...next(upload) } : upload)));
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Use the uploads that go on, wait or have failed. They go on when another page is opened. */
export function useUploads(): readonly Upload[] {
  return useSyncExternalStore(subscribe, () => uploads);
}

/** Send files, a few at a time, and return the objects of those that have arrived. */
export async function upload(files: readonly File[], purpose: Purpose): Promise<FileObject[]> {
  const added = files.map((file) => ({ file, id: ++lastId }));
  for (const { id } of added) controllers.set(id, new AbortController());
  show([
    ...uploads,
    ...added.map(({ file, id }): Upload => ({ id, name: file.name, bytes: file.size, sent: 0, state: "waiting", error: null })),
  ]);
  const arrived: FileObject[] = [];
  const queue = added.values();
  async function work() {
    for (const { file, id } of queue) {
      const object = await run(file, id, purpose);
      if (object !== null) arrived.push(object);
    }
  }
  await Promise.all(Array.from({ length: FILES_AT_ONCE }, work));
  return arrived;
}

async function run(file: File, id: number, purpose: Purpose): Promise<FileObject | null> {
  const signal = controllers.get(id)?.signal;
  if (signal === undefined || signal.aborted) return null;
  change(id, () => ({ state: "sending" }));
  try {
    const object = await sendFile(file, purpose, signal, (bytes) => change(id, ({ sent }) => ({ sent: sent + bytes })));
    dismissUpload(id);
    void refresh("/v1/files");
    return object;
  } catch (error) {
    if (!signal.aborted) change(id, () => ({ state: "failed", error: error as Error }));
    return null;
  }
}

/** Cancel an upload; what has arrived of it is deleted. */
export function cancelUpload(id: number): void {
  controllers.get(id)?.abort();
  change(id, () => ({ state: "cancelled" }));
}

/** Remove an upload that has ended from the list. */
export function dismissUpload(id: number): void {
  controllers.delete(id);
  show(uploads.filter((upload) => upload.id !== id));
}
