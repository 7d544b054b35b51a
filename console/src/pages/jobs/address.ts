import { readText, readTime } from "@/components/address";

/** The parameters of the pages of jobs in the address. What stands in an address may be anything. */

/** The filters of the list of jobs. Times are in seconds of Unix, so that a link means the same in every zone. */
export interface JobsSearch {
  kind?: string;
  state?: string;
  model?: string;
  metadata?: string;
  since?: number;
  until?: number;
}

/** Read the filters of the list of jobs from the address. */
export function jobsSearch(given: Record<string, unknown>): JobsSearch {
  return {
    kind: readText(given.kind),
    state: readText(given.state),
    model: readText(given.model),
    metadata: readText(given.metadata),
    since: readTime(given.since),
    until: readTime(given.until),
  };
}

/** The parts of the page of a job. */
export const JOB_TABS = ["overview", "results", "events", "webhook", "graph"] as const;
export type JobTab = (typeof JOB_TABS)[number];

/** The open part of the page of a job, and the selected results. `after` is where their page begins. */
export interface JobSearch {
  tab?: JobTab;
  outcome?: "succeeded" | "failed";
  code?: string;
  custom_id?: string;
  /** A column of the table of results, and the text that it has in the selected ones. */
  column?: string;
  text?: string;
  after?: string;
}

/** Read the parameters of the page of a job from the address. */
export function jobSearch(given: Record<string, unknown>): JobSearch {
  return {
    tab: JOB_TABS.find((tab) => tab === given.tab),
    outcome: given.outcome === "succeeded" || given.outcome === "failed" ? given.outcome : undefined,
    code: readText(given.code),
    custom_id: readText(given.custom_id),
    column: readText(given.column),
    text: readText(given.text),
    after: readText(given.after),
  };
}

/** A name with or without a value. A quote counts where a name or a value begins, as in CSV. */
const ENTRY = /(\s*"(?:[^"]|"")*"\s*(?=[=,]|$)|[^,=]*)(?:=(\s*"(?:[^"]|"")*"\s*(?=,|$)|[^,]*))?(?:,|$)/g;
const QUOTED = /^"(?:[^"]|"")*"$/;

/**
 * Return the pairs of a text such as `team=search, note="a, b"`; a name without a value has the empty one.
 *
 * Names and values may be quoted as in CSV, so that they can hold commas, equals signs and quotes.
 */
export function metadataPairs(text: string): [name: string, value: string][] {
  return [...text.matchAll(ENTRY)]
    .map(([, name = "", value = ""]): [string, string] => [unquoted(name), unquoted(value)])
    .filter(([name, value]) => name !== "" || value !== "");
}

function unquoted(text: string): string {
  const trimmed = text.trim();
  return QUOTED.test(trimmed) ? trimmed.slice(1, -1).replaceAll('""', '"') : trimmed;
}
