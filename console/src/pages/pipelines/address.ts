import { STATUSES, type Pipeline } from "./pipelines";

/** The parameters of the list of pipelines in the address. */
export interface PipelinesSearch {
  /** The status of those that are listed; all unless it is given. */
  status?: Pipeline["status"];
}

/** Read from the address which pipelines are listed. */
export function pipelinesSearch(given: Record<string, unknown>): PipelinesSearch {
  return { status: STATUSES.find((status) => status === given.status) };
}
