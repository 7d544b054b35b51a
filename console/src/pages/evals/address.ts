const STATUSES = ["pass", "fail", "error"] as const;

/** A status of an output item. */
export type ItemStatus = (typeof STATUSES)[number];

/** The parameters of the address of a run. */
export interface RunSearch {
  tab?: "comparison";
  /** Only items of this status. */
  status?: ItemStatus;
  /** The run that this one is compared with. */
  baseline?: string;
}

/** Read the parameters of the address of a run. */
export function runSearch(given: Record<string, unknown>): RunSearch {
  const status = STATUSES.find((each) => each === given.status);
  const baseline = typeof given.baseline === "string" && given.baseline !== "" ? given.baseline : undefined;
  return { status, baseline, tab: given.tab === "comparison" ? "comparison" : undefined };
}

/** The parameters of the address of the page that makes an evaluation. */
export interface NewEvalSearch {
  /** The model that the first run asks. */
  model?: string;
}

/** Read the parameters of the address of the page that makes an evaluation. */
export function newEvalSearch(given: Record<string, unknown>): NewEvalSearch {
  return typeof given.model === "string" && given.model !== "" ? { model: given.model } : {};
}
