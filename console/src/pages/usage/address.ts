import { readText } from "@/components/address";

import { GROUPINGS, type Grouping } from "./usage";

/** A span of the page of usage, in days. */
export interface Span {
  id: "week" | "month" | "quarter";
  name: string;
  days: number;
}

const MONTH: Span = { id: "month", name: "30 days", days: 30 };

/** The spans of the page of usage. */
export const SPANS: readonly Span[] = [{ id: "week", name: "7 days", days: 7 }, MONTH, { id: "quarter", name: "90 days", days: 90 }];

/** Return the span that an address names, 30 days without a name. */
export function spanOf(id: Span["id"] | undefined): Span {
  return SPANS.find((span) => span.id === id) ?? MONTH;
}

/** What the page of usage shows: the last days, grouped by project unless the address says otherwise, of a project or of all. */
export interface UsageSearch {
  span?: Span["id"];
  by?: Grouping;
  project?: string;
}

/** Read what the page of usage shows from the address, where anything may stand. */
export function usageSearch(given: Record<string, unknown>): UsageSearch {
  return {
    span: SPANS.find((span) => span !== MONTH && span.id === given.span)?.id,
    by: GROUPINGS.find(({ id }) => id !== "project" && id === given.by)?.id,
    project: readText(given.project),
  };
}
