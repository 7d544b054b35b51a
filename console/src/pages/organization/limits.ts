import type { Schema } from "@/api/client";

export type RateLimit = Schema<"ProjectRateLimit">;

/** What the API shows where there is no limit, and takes for none. */
export const NO_LIMIT = 1_000_000_000;

/** The limits of a project for a model, with the words of the page. */
export const LIMITS = [
  { id: "max_requests_per_1_minute", name: "Requests a minute" },
  { id: "max_tokens_per_1_minute", name: "Tokens a minute" },
  { id: "max_requests_per_1_day", name: "Requests a day" },
  { id: "batch_1_day_max_input_tokens", name: "Enqueued batch tokens" },
] as const;
export type LimitName = (typeof LIMITS)[number]["id"];

/** Write a limit as the input of a form has it: empty where there is none. */
export function toInput(limit: number): string {
  return limit >= NO_LIMIT ? "" : String(limit);
}

/** Read a limit from the input of a form. */
export function fromInput(text: string): number {
  return text === "" ? NO_LIMIT : Number(text);
}
