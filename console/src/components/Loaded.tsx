import type { ReactNode } from "react";

import { Failure } from "./Failure";
import { Loading } from "./Loading";
import { Page } from "./Page";

interface LoadedProps<Data> {
  /** What is loaded, in words: "the file". */
  what: string;
  /** A query of `useQuery`. */
  query: { data: Data | undefined; error: Error | null; refetch: () => unknown };
  /** The heading of the page until there is an answer, where the answer is a page of its own. */
  page?: string;
  children: (data: Data) => ReactNode;
}

/** Render the answer of a query: it loads, it failed, or `children`. An answer stays when reading it again fails. */
export function Loaded<Data>({ what, query, page, children }: LoadedProps<Data>) {
  const failure = query.error && <Failure title={`Loading ${what} failed`} error={query.error} onRetry={() => void query.refetch()} />;
  if (query.data !== undefined) {
    return (
      <>
        {failure}
        {children(query.data)}
      </>
    );
  }
  const waiting = failure ?? <Loading what={what} />;
  return page === undefined ? waiting : <Page title={page}>{waiting}</Page>;
}
