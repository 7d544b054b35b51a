const TABS = ["documents", "search", "sources", "indexes"] as const;
type Tab = (typeof TABS)[number];

const DOCUMENT_STATES = ["completed", "in_progress", "failed", "cancelled"] as const;
export type DocumentState = (typeof DOCUMENT_STATES)[number];

/** The parameters of a vector store's address. */
export interface StoreSearch {
  tab?: Tab;
  /** The query of the search box. */
  q?: string;
  /** The state of the documents that are listed. */
  state?: DocumentState;
}

/** Return the tab of this name, if there is one. */
export function tabOf(name: unknown): Tab | undefined {
  return TABS.find((tab) => tab === name);
}

/** Read the parameters of a vector store's address. */
export function storeSearch(given: Record<string, unknown>): StoreSearch {
  return {
    tab: tabOf(given.tab),
    q: typeof given.q === "string" ? given.q : undefined,
    state: DOCUMENT_STATES.find((state) => state === given.state),
  };
}
