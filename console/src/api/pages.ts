import { useInfiniteQuery } from "@tanstack/react-query";

/** A page of a list in OpenAI's shape. */
export interface ListPage<Item> {
  data: Item[];
  has_more: boolean;
  last_id?: string | null;
}

/** Milliseconds between two looks at what is on its way. */
export const POLL = 2_000;

/**
 * Query a list page by page; `rows` holds the items of all pages that were loaded.
 *
 * `load` receives the id after which the next page begins. `LoadMore` shows the button for it.
 * The list is read again and again while `pollWhile` holds for one of its items.
 */
export function usePages<Item extends { id: string }>(
  key: readonly unknown[],
  load: (after: string | undefined, signal: AbortSignal) => Promise<ListPage<Item>>,
  { pollWhile, ...options }: { refetchInterval?: number | false; enabled?: boolean; pollWhile?: (item: Item) => boolean } = {},
) {
  const query = useInfiniteQuery({
    queryKey: key,
    queryFn: ({ pageParam, signal }) => load(pageParam, signal),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page: ListPage<Item>) => (page.has_more ? (page.last_id ?? page.data.at(-1)?.id) : undefined),
    ...(pollWhile && {
      refetchInterval: ({ state }: { state: { data?: { pages: ListPage<Item>[] } } }) =>
        state.data?.pages.some((page) => page.data.some(pollWhile)) ? POLL : false,
    }),
    ...options,
  });
  return { ...query, rows: query.data?.pages.flatMap((page) => page.data) ?? [] };
}
