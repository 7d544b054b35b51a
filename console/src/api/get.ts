import { useInfiniteQuery, type InfiniteData } from "@tanstack/react-query";

import { api, adminApi, queries, take } from "./client";
import type { paths } from "./schema";

/** Milliseconds between two readings of what goes on. */
export const POLL = 2_000;

type JsonOf<Route> = Route extends { get: { responses: { 200: { content: { "application/json": infer Body } } } } } ? Body : never;
type ParametersOf<Route> = Route extends { get: { parameters: infer Parameters } } ? Parameters : never;

/** The paths that a GET request answers with JSON. */
type Path = { [Each in keyof paths]: [JsonOf<paths[Each]>] extends [never] ? never : Each }[keyof paths];

/** The body of the answer to a GET request of a path. */
export type Answer<Each extends Path> = JsonOf<paths[Each]>;

/** The parameters of a path: `{ path: { job_id }, query: { limit } }`. */
type Parameters<Each extends Path> = Pick<ParametersOf<paths[Each]>, keyof ParametersOf<paths[Each]> & ("path" | "query")>;

/**
 * Return the options of a query of a path: `useQuery(get("/v1/jobs/{job_id}", { path: { job_id } }))`.
 *
 * The key of the query is the path and its parameters: the feed and `refresh` find the query by them. `as` chooses the
 * key of the project or an admin key.
 */
export function get<Each extends Path>(path: Each, params: Parameters<Each>, as: typeof api = api) {
  return { queryKey: [path, params] as const, queryFn: ({ signal }: { signal: AbortSignal }) => read(path, params, signal, as) };
}

/** Return the options of a query of a path that takes the admin key. */
export function getAsAdmin<Each extends Path>(path: Each, params: Parameters<Each>) {
  return get(path, params, adminApi);
}

function read<Each extends Path>(path: Each, params: object, signal: AbortSignal, as: typeof api): Promise<Answer<Each>> {
  // The compiler cannot follow the types of `openapi-fetch` for a path that is a parameter.
  const send = as.GET as unknown as (path: Each, init: object) => Promise<{ data?: Answer<Each> }>;
  return take(send(path, { params, signal }));
}

/** Read all queries of the paths again that are on the screen; the others are read when they are shown next. */
export async function refresh(...changed: Path[]): Promise<void> {
  await Promise.all(changed.map((path) => queries.invalidateQueries({ queryKey: [path] })));
}

/** A page of a list in OpenAI's shape. */
interface ListPage<Item> {
  data: Item[];
  has_more: boolean;
  last_id?: string | null;
}

/** The paths that answer with a page of a list. */
type ListPath = { [Each in Path]: Answer<Each> extends ListPage<object> ? Each : never }[Path];
type Item<Each extends ListPath> = Answer<Each> extends ListPage<infer Row> ? Row : never;

interface PagesOptions<Row> {
  refetchInterval?: number | false;
  enabled?: boolean;
  /** Read the list again and again while this holds for one of its items. */
  pollWhile?: (item: Row) => boolean;
  /** Return where the page behind an item begins, where that is not the item's id. */
  cursorOf?: (item: Row) => string;
  /** `adminApi` for a path that takes the admin key. */
  as?: typeof api;
}

/** Query a list page by page; `rows` holds the items of all pages that were loaded. `Listed` renders it. */
export function usePages<Each extends ListPath>(path: Each, params: Parameters<Each>, options: PagesOptions<Item<Each>> = {}) {
  type Row = Item<Each>;
  const { pollWhile, cursorOf, refetchInterval, enabled, as = api } = options;
  const query = useInfiniteQuery({
    queryKey: [path, params],
    queryFn: async ({ pageParam: after, signal }) => {
      const { query } = params as { query?: object };
      return (await read(path, { ...params, query: { ...query, after } }, signal, as)) as unknown as ListPage<Row>;
    },
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => (page.has_more ? afterOf(page, cursorOf) : undefined),
    refetchInterval: pollWhile ? ({ state }) => pollWhenAny(state.data, pollWhile) : refetchInterval,
    enabled,
  });
  return { ...query, rows: query.data?.pages.flatMap((page) => page.data) ?? [] };
}

function afterOf<Row>({ data, last_id }: ListPage<Row>, cursorOf?: (item: Row) => string): string | undefined {
  const last = data.at(-1);
  if (cursorOf !== undefined) return last && cursorOf(last);
  return last_id ?? (last as { id: string } | undefined)?.id;
}

function pollWhenAny<Row>(data: InfiniteData<ListPage<Row>> | undefined, pollWhile: (item: Row) => boolean): number | false {
  return data?.pages.some((page) => page.data.some(pollWhile)) ? POLL : false;
}

/** An answer with a part of the rows. The cursor of the next part is `next` in lists and `next_page` in buckets of time. */
interface Part<Row> {
  data: Row[];
  next?: string | null;
  next_page?: string | null;
}

/** The paths of the admin API that answer with parts. */
type PartPath = { [Each in Path]: Answer<Each> extends { data: unknown[] } & ({ next: unknown } | { next_page: unknown }) ? Each : never }[Path];
type PartRow<Each extends PartPath> = Answer<Each> extends Part<infer Row> ? Row : never;

/** The options of a query, whatever its path. */
export interface AnyQuery<Data> {
  queryKey: readonly unknown[];
  queryFn: (context: { signal: AbortSignal }) => Promise<Data>;
}

/**
 * Return the options of a query of all rows of a path of the admin API, part after part.
 *
 * It is for what is short by its nature. What may be long is a list of `usePages`.
 */
export function getAllAsAdmin<Each extends PartPath>(path: Each, params: Parameters<Each>): AnyQuery<PartRow<Each>[]> {
  const { query } = params as { query?: object };
  async function readAll({ signal }: { signal: AbortSignal }): Promise<PartRow<Each>[]> {
    const rows: PartRow<Each>[] = [];
    let cursor: object | null = {};
    while (cursor !== null) {
      const part = (await read(path, { ...params, query: { ...query, ...cursor } }, signal, adminApi)) as unknown as Part<PartRow<Each>>;
      rows.push(...part.data);
      cursor = part.next ? { after: part.next } : part.next_page ? { page: part.next_page } : null;
    }
    return rows;
  }
  return { queryKey: [path, params, "all"], queryFn: readAll };
}
