import type { ReactNode } from "react";

import { Failure } from "./Failure";
import { Loading } from "./Loading";
import { LoadMore } from "./LoadMore";

interface ListedProps {
  /** What is listed, in words: "the keys". */
  what: string;
  /** A query of `usePages`. */
  query: {
    isPending: boolean;
    error: Error | null;
    refetch: () => unknown;
    rows: readonly unknown[];
    hasNextPage: boolean;
    isFetchingNextPage: boolean;
    fetchNextPage: () => unknown;
  };
  /** What stands in the place of a list without rows. */
  empty: ReactNode;
  /** The list itself. */
  children: ReactNode;
}

/** Render a list that is loaded page by page: it loads, it failed, it is empty, or its rows and the way to more. */
export function Listed({ what, query, empty, children }: ListedProps) {
  if (query.isPending) return <Loading what={what} />;
  return (
    <div className="stack">
      {query.error && <Failure title={`Loading ${what} failed`} error={query.error} onRetry={() => void query.refetch()} />}
      {query.rows.length > 0 ? children : !query.error && empty}
      <LoadMore query={query} />
    </div>
  );
}
