import { readText } from "@/components/address";

/** A span of the charts of the overview: how far back, and what a bar of it holds, both in seconds. */
export interface Span {
  id: "hour" | "day" | "week";
  name: string;
  seconds: number;
  step: number;
}

const DAY: Span = { id: "day", name: "24 hours", seconds: 86_400, step: 1_800 };

/** The spans of the charts of the overview. */
export const SPANS: readonly Span[] = [
  { id: "hour", name: "1 hour", seconds: 3_600, step: 60 },
  DAY,
  { id: "week", name: "7 days", seconds: 604_800, step: 10_800 },
];

/** Return the span that an address names, a day without a name. */
export function spanOf(id: Span["id"] | undefined): Span {
  return SPANS.find((span) => span.id === id) ?? DAY;
}

/** What the charts of the overview show: the last hours, and the lines of one model or of all. */
interface OverviewSearch {
  span?: Span["id"];
  model?: string;
}

/** Read what the charts of the overview show from the address. */
export function overviewSearch(given: Record<string, unknown>): OverviewSearch {
  return { span: SPANS.find((span) => span !== DAY && span.id === given.span)?.id, model: readText(given.model) };
}
