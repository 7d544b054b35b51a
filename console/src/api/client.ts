import { QueryClient } from "@tanstack/react-query";
import createClient from "openapi-fetch";

import { sendOnce } from "./idempotency";
import type { components, paths } from "./schema";
import { currentSession, signOut } from "./session";

/** The types of the API's objects, by name: `Schema<"JobObject">`. */
export type Schema<Name extends keyof components["schemas"]> = components["schemas"][Name];

/** An error of the API in OpenAI's shape. `status` is 0 where the server was not reached. */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
    readonly param: string | null = null,
    readonly requestId: string | null = null,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Read the error from an answer whose status says that it is one. */
export async function readError(answer: Response): Promise<ApiError> {
  const requestId = answer.headers.get("x-request-id");
  const body: unknown = await answer.json().catch(() => null);
  const error = (body as { error?: { message?: string; code?: string | null; param?: string | null } } | null)?.error;
  const message = error?.message ?? `The server answered with status ${answer.status}.`;
  return new ApiError(answer.status, message, error?.code ?? null, error?.param ?? null, requestId);
}

/**
 * Send a request with the key of the project, for answers that `api` cannot read: streams and downloads.
 *
 * Raises: ApiError where the server cannot be reached or answers with an error.
 */
export function request(path: string, init: RequestInit = {}): Promise<Response> {
  return send("key", new Request(new URL(path, location.origin), init));
}

/** Send a request with one of the session's keys. A refused key of the project ends the session that still holds it. */
async function send(which: "key" | "adminKey", request: Request): Promise<Response> {
  const key = currentSession()[which];
  request.headers.set("Authorization", `Bearer ${key ?? ""}`);
  const answer = await fetch(request).catch((error: Error) => {
    throw error.name === "AbortError" ? error : unreached(error);
  });
  if (answer.ok) return answer;
  const error = await readError(answer);
  if (answer.status === 401 && which === "key" && key === currentSession().key) signOut(error.message);
  throw error;
}

function unreached(cause: Error): ApiError {
  return new ApiError(0, "The server cannot be reached.", "unreachable", null, null, { cause });
}

/** Ask the server for the console's page. Raises: ApiError where the server cannot be reached. */
export async function reachServer(): Promise<void> {
  await fetch(import.meta.env.BASE_URL, { cache: "no-store" }).catch((error: Error) => {
    throw unreached(error);
  });
}

/** Return whether a request that failed may pass when it is sent again, and may have been carried out. */
export function mayPass(error: unknown): boolean {
  return error instanceof ApiError && (error.status === 0 || error.status === 429 || error.status >= 500);
}

/**
 * Write the query of an address: a list as `x=a&x=b`, the entries of an object as `metadata[team]=search`, and nothing
 * for an empty value.
 */
function writeQuery(query: object): string {
  const written = new URLSearchParams();
  for (const [name, value] of Object.entries(query) as [string, string | number | object | null | undefined][]) {
    if (Array.isArray(value)) for (const each of value) written.append(name, String(each));
    else if (typeof value === "object" && value !== null) for (const [entry, each] of Object.entries(value)) written.append(`${name}[${entry}]`, String(each));
    else if (value !== undefined && value !== null) written.append(name, String(value));
  }
  return written.toString();
}

function client(which: "key" | "adminKey") {
  const fetch = (request: Request) => {
    if (request.method !== "POST") return send(which, request);
    return sendOnce(request, (once) => send(which, once), (error) => !(error instanceof ApiError) || mayPass(error));
  };
  return createClient<paths>({ baseUrl: location.origin, querySerializer: writeQuery, fetch });
}

/** The API with the key of the project: `take(api.GET("/v1/jobs", { params: { query } }))`. A POST happens once. */
export const api = client("key");

/** The API with the admin key, for the routes that steer the deployment. */
export const adminApi = client("adminKey");

/** Wait for an answer of `api` and return its body. Every error has been thrown as `ApiError` before. */
export async function take<Body>(answer: Promise<{ data?: Body }>): Promise<Body> {
  return (await answer).data as Body;
}

/** Repeat only what may succeed the next time: a server that is away or too busy. */
function mayRetry(failures: number, error: Error): boolean {
  const status = error instanceof ApiError ? error.status : null;
  return failures < 3 && (status === 429 || (status !== null && status >= 500));
}

/**
 * The cache of all queries.
 *
 * The first part of a query's key is the path template that it asks, such as `/v1/jobs/{job_id}`, and the second one
 * its parameters: the feed invalidates queries by both.
 */
export const queries = new QueryClient({
  defaultOptions: {
    // "always": a server on this machine is there without a network, too.
    queries: { retry: mayRetry, staleTime: 5_000, refetchOnWindowFocus: true, networkMode: "always" },
    mutations: { retry: false, networkMode: "always" },
  },
});
