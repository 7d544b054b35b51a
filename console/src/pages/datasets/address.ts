/** The parameters of the address of a dataset. */
export interface DatasetSearch {
  /** The number of the version that is shown; the newest one unless it is given. */
  version?: number;
}

/** Read the parameters of the address of a dataset. */
export function datasetSearch(given: Record<string, unknown>): DatasetSearch {
  const { version } = given;
  return { version: typeof version === "number" && Number.isInteger(version) && version > 0 ? version : undefined };
}
