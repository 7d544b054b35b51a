/** The sources of the requests of a new batch. */
const SOURCES = ["requests", "table", "file"] as const;
export type Source = (typeof SOURCES)[number];

/** The parameters of the page in the address: the open source, and the id of a file that is uploaded already. */
interface NewBatchSearch {
  source?: Source;
  file?: string;
}

/** Read the parameters of the page from the address, where anything may stand. */
export function newBatchSearch(given: Record<string, unknown>): NewBatchSearch {
  return {
    source: SOURCES.find((source) => source === given.source),
    file: typeof given.file === "string" && given.file !== "" ? given.file : undefined,
  };
}
