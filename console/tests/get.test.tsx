import { QueryClientProvider, useQuery } from "@tanstack/react-query";
import { act, cleanup, fireEvent, render, screen } from "@testing-library/react";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

import { queries } from "@/api/client";
import { get, getAllAsAdmin, refresh, usePages } from "@/api/get";
import { Listed } from "@/components/Listed";
import { Loaded } from "@/components/Loaded";

const urls: string[] = [];
let answers: Record<string, unknown>[] = [];

/** Answer the next requests with `bodies`, one each; a body with an error has status 500. */
function answerWith(...bodies: Record<string, unknown>[]) {
  answers = bodies;
}

beforeEach(() => {
  urls.length = 0;
  queries.setDefaultOptions({ queries: { retry: false } });
  vi.stubGlobal("fetch", ({ url }: Request) => {
    urls.push(url.replace(location.origin, ""));
    const body = answers.shift()!;
    return Promise.resolve(new Response(JSON.stringify(body), { status: "error" in body ? 500 : 200, headers: { "Content-Type": "application/json" } }));
  });
});

afterEach(() => {
  cleanup();
  queries.clear();
});

function show(element: React.ReactElement) {
  render(<QueryClientProvider client={queries}>{element}</QueryClientProvider>);
}

function File() {
  const file = useQuery(get("/v1/files/{file_id}", { path: { file_id: "file-1" } }));
  return (
    <Loaded what="the file" query={file} page="File">
      {({ filename }) => <p>{filename}</p>}
    </Loaded>
  );
}

function Files() {
  const metadata = { "a&b": "1 2" };
  const files = usePages("/v1/files", { query: { limit: 2, metadata } as { limit: number } });
  return (
    <Listed what="the files" query={files} empty={<p>No files</p>}>
      {files.rows.map(({ id }) => (
        <p key={id}>{id}</p>
      ))}
    </Listed>
  );
}

it("reads a list page by page behind the last id, with the query of the first page", async () => {
  answerWith({ data: [{ id: "file-1" }, { id: "file-2" }], has_more: true, last_id: "file-2" }, { data: [{ id: "file-3" }], has_more: false });
  show(<Files />);

  fireEvent.click(await screen.findByRole("button", { name: "Load more" }));

  await screen.findByText("file-3");
  expect(urls).toEqual(["/v1/files?limit=2&metadata%5Ba%26b%5D=1+2", "/v1/files?limit=2&metadata%5Ba%26b%5D=1+2&after=file-2"]);
  expect(screen.queryByRole("button", { name: "Load more" })).toBeNull();
});

it("says that a list is empty only where it was read", async () => {
  answerWith({ error: { message: "The database is away." } }, { data: [], has_more: false });
  show(<Files />);

  await screen.findByText("The database is away.");
  expect(screen.queryByText("No files")).toBeNull();
  fireEvent.click(screen.getByRole("button", { name: "Try again" }));

  await screen.findByText("No files");
  expect(screen.queryByRole("alert")).toBeNull();
});

it("keeps an answer on the screen when reading it again fails", async () => {
  answerWith({ filename: "a.jsonl" }, { error: { message: "The database is away." } });
  show(<File />);
  await screen.findByText("a.jsonl");

  await act(() => refresh("/v1/files/{file_id}"));

  await screen.findByText("The database is away.");
  expect(screen.getByText("a.jsonl")).toBeTruthy();
});

it("heads the page of an object that cannot be read", async () => {
  answerWith({ error: { message: "No such file." } });
  show(<File />);

  await screen.findByText("No such file.");
  expect(screen.getByRole("heading", { name: "File" })).toBeTruthy();
});

it("reads all parts of a list, and of buckets of time, behind their cursors", async () => {
  const { signal } = new AbortController();
  answerWith({ data: ["a"], next: "user_1" }, { data: ["b"], next: null }, { data: ["c"], next_page: "x" }, { data: ["d"], next_page: null });

  const users = await getAllAsAdmin("/v1/organization/users", { query: { limit: 1 } }).queryFn({ signal });
  const buckets = await getAllAsAdmin("/v1/organization/costs", { query: { start_time: 0 } }).queryFn({ signal });

  expect([users, buckets]).toEqual([["a", "b"], ["c", "d"]]);
  expect(urls).toEqual([
    "/v1/organization/users?limit=1",
    "/v1/organization/users?limit=1&after=user_1",
    "/v1/organization/costs?start_time=0",
    "/v1/organization/costs?start_time=0&page=x",
  ]);
});
