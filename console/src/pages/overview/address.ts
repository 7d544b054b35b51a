import { readText } from "@/components/address";

/** The spans of the charts of the overview, in hours, with the seconds of a bar. */
export const SPANS = [
  { hours: 1, step: 60 },
  { hours: 24, step: 1_800 },
] as const;

/** What the charts of the overview show: the last hours, and the lines of one model or of all. */
interface OverviewSearch {
  hours?: 1;
  model?: string;
}

/** Read what the charts of the overview show from the address. */
export function overviewSearch(given: Record<string, unknown>): OverviewSearch {
  return { hours: Number(given.hours) === 1 ? 1 : undefined, model: readText(given.model) };
}
