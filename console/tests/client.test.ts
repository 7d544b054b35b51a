import { beforeEach, describe, expect, it, vi } from "vitest";

import { api, ApiError, adminApi, queries, request, take } from "@/api/client";
import { currentSession, redeemToken, setAdminKey, signIn, signOut } from "@/api/session";

const requests: Request[] = [];

/** Let every request be answered by `answer`, and record it. */
function answerWith(status: number, body: unknown, headers: Record<string, string> = {}) {
  vi.stubGlobal("fetch", (input: string | Request, init?: RequestInit) => {
    requests.push(new Request(typeof input === "string" ? new URL(input, location.origin) : input, init));
    return Promise.resolve(new Response(JSON.stringify(body), { status, headers: { "Content-Type": "application/json", ...headers } }));
  });
}

beforeEach(() => {
  requests.length = 0;
  signOut();
  history.replaceState(null, "", "/console/");
});

describe("the client", () => {
  it("sends the key of the project, and the admin key only where it is asked for", async () => {
    signIn("nm_project");
    setAdminKey("nm_admin");
    answerWith(200, { object: "list", data: [], has_more: false });

    await take(api.GET("/v1/jobs", { params: { query: { limit: 1 } } }));
    await take(adminApi.GET("/v1/workers"));
    await request("/v1/files/file-1/content");

    expect(requests.map((each) => each.headers.get("Authorization"))).toEqual([
      "Bearer nm_project",
      "Bearer nm_admin",
      "Bearer nm_project",
    ]);
    expect(requests[0]!.url).toBe(`${location.origin}/v1/jobs?limit=1`);
  });

  it("writes a list of a query as several values", async () => {
    answerWith(200, { object: "page", data: [], has_more: false, next_page: null });

    await take(adminApi.GET("/v1/organization/costs", { params: { query: { start_time: 0, group_by: ["project_id", "line_item"] } } }));

    expect(requests[0]!.url).toBe(`${location.origin}/v1/organization/costs?start_time=0&group_by=project_id&group_by=line_item`);
  });

  it("throws an error of the API with its words, code, parameter and request", async () => {
    const error = { message: "There is no such job.", code: "job_not_found", param: "job_id", type: "invalid_request_error" };
    answerWith(404, { error }, { "x-request-id": "req_1" });

    const call = take(api.GET("/v1/jobs/{job_id}", { params: { path: { job_id: "batch_1" } } }));

    await expect(call).rejects.toMatchObject({ status: 404, ...pick(error), requestId: "req_1" });
  });

  it("says that the server cannot be reached, and passes an abort on", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("Failed to fetch")));
    await expect(take(api.GET("/v1/jobs"))).rejects.toMatchObject({ status: 0, code: "unreachable" });
    await expect(request("/v1/jobs")).rejects.toBeInstanceOf(ApiError);

    vi.stubGlobal("fetch", () => Promise.reject(new DOMException("aborted", "AbortError")));
    await expect(take(api.GET("/v1/jobs"))).rejects.toMatchObject({ name: "AbortError" });
  });

  it("understands an error that is no JSON", async () => {
    vi.stubGlobal("fetch", () => Promise.resolve(new Response("<h1>Bad gateway</h1>", { status: 502 })));
    await expect(request("/v1/jobs")).rejects.toMatchObject({ status: 502, message: "The server answered with status 502." });
  });
});

describe("a request that creates something", () => {
  const create = () => take(api.POST("/v1/vector_stores", { body: { name: "handbook" } }));
  const keys = () => requests.map((each) => each.headers.get("Idempotency-Key"));

  it("is sent again with the same key after a lost answer, and with a new one after an answer", async () => {
    const lose = (input: Request) => (requests.push(input), Promise.reject(new TypeError("Failed to fetch")));
    vi.stubGlobal("fetch", lose);
    await expect(create()).rejects.toMatchObject({ status: 0 });
    answerWith(503, {});
    await expect(create()).rejects.toMatchObject({ status: 503 });
    answerWith(200, { id: "vs_1" });
    await create();
    await create();

    const [lost, busy, made, next] = keys();
    expect(lost).toMatch(/^console-[0-9a-f]{32}$/);
    expect([busy, made]).toEqual([lost, lost]);
    expect(next).not.toBe(lost);
  });

  it("has the key that it was given", async () => {
    answerWith(200, { id: "vs_1" });
    const header = { "Idempotency-Key": "given" };
    await take(api.POST("/v1/vector_stores", { params: { header }, body: { name: "handbook" } }));

    expect(keys()).toEqual(["given"]);
  });

  it("gets a new key after a refusal, and for another content", async () => {
    answerWith(400, { error: { message: "No." } });
    await expect(create()).rejects.toMatchObject({ status: 400 });
    await expect(create()).rejects.toMatchObject({ status: 400 });
    await expect(take(api.POST("/v1/vector_stores", { body: { name: "other" } }))).rejects.toMatchObject({ status: 400 });

    expect(new Set(keys()).size).toBe(3);
  });
});

describe("the session", () => {
  it("ends with the server's words when the project's key is refused, and survives a refused admin key", async () => {
    signIn("nm_project");
    setAdminKey("nm_admin");
    answerWith(401, { error: { message: "This key was revoked.", code: "invalid_api_key" } });

    await expect(take(adminApi.GET("/v1/workers"))).rejects.toMatchObject({ status: 401 });
    expect(currentSession().key).toBe("nm_project");

    await expect(take(api.GET("/v1/jobs"))).rejects.toMatchObject({ status: 401 });
    expect(currentSession()).toEqual({ key: null, keys: [], adminKey: null, refusal: "This key was revoked." });
    expect(sessionStorage.getItem("nightmill.key")).toBeNull();
  });

  it("holds the keys of several projects until it ends", () => {
    signIn("nm_first");
    signIn("nm_second");
    signIn("nm_first");
    expect(currentSession()).toMatchObject({ key: "nm_first", keys: ["nm_first", "nm_second"] });
    expect(sessionStorage.getItem("nightmill.keys")).toBe('["nm_first","nm_second"]');

    signOut();
    expect(currentSession()).toMatchObject({ key: null, keys: [] });
    expect(sessionStorage.length).toBe(0);
  });

  it("does not end by the late answer to a key that was replaced meanwhile", async () => {
    signIn("nm_old");
    vi.stubGlobal("fetch", () => {
      signIn("nm_new");
      return Promise.resolve(new Response("{}", { status: 401 }));
    });

    await expect(take(api.GET("/v1/jobs"))).rejects.toMatchObject({ status: 401 });

    expect(currentSession().key).toBe("nm_new");
  });

  it("exchanges the token of a link for the key, and removes it from the address", async () => {
    history.replaceState(null, "", "/console/jobs?state=failed#token=once");
    answerWith(200, { api_key: "nm_from_link" });

    await redeemToken();

    expect(currentSession().key).toBe("nm_from_link");
    expect(location.href).toBe(`${location.origin}/console/jobs?state=failed`);
    expect(await requests[0]!.json()).toEqual({ token: "once" });
  });

  it("says why a token was refused, and keeps a key that is there", async () => {
    answerWith(401, { error: { message: "This link has expired.", code: "invalid_sign_in_token" } });
    history.replaceState(null, "", "/console/#token=spent");
    await redeemToken();
    expect(currentSession()).toMatchObject({ key: null, refusal: "This link has expired." });

    signIn("nm_project");
    history.replaceState(null, "", "/console/#token=spent");
    await redeemToken();
    expect(currentSession()).toMatchObject({ key: "nm_project", refusal: null });
  });
});

it("repeats queries only where that may help", () => {
  const retry = queries.getDefaultOptions().queries!.retry as (failures: number, error: Error) => boolean;

  expect(retry(0, new ApiError(503, "busy"))).toBe(true);
  expect(retry(3, new ApiError(503, "busy"))).toBe(false);
  expect(retry(0, new ApiError(404, "gone"))).toBe(false);
  expect(retry(0, new TypeError("a mistake"))).toBe(false);
});

function pick({ message, code, param }: { message: string; code: string; param: string }) {
  return { message, code, param };
}
