import type { Schema } from "@/api/client";
import { kindOf } from "@/api/kinds";
import { words } from "@/components/format";

export type JobObject = Schema<"JobObject">;

/** The states of jobs, in the order of a life. */
export const STATES = ["queued", "running", "finishing", "expiring", "cancelling", "succeeded", "failed", "expired", "cancelled"] as const;

const LIVE = new Set<string>(["queued", "running", "finishing", "expiring", "cancelling"]);

/** Return the words for a kind of job. */
export function kindLabel(kind: string): string {
  return kindOf({ kind })?.label ?? words(kind);
}

/** Return whether a job goes on. */
export function isLive(job: Pick<JobObject, "state">): boolean {
  return LIVE.has(job.state);
}

/** Return whether a job can be cancelled. */
export function mayCancel(job: Pick<JobObject, "state">): boolean {
  return job.state === "queued" || job.state === "running";
}

/** Return whether a job can be run again as a new one. */
export function mayRetry(job: Pick<JobObject, "state" | "kind">): boolean {
  return !isLive(job) && kindOf(job)?.retryable !== false;
}

/** Return those of some jobs that can be cancelled. */
export function cancellable(jobs: readonly JobObject[]): JobObject[] {
  return jobs.filter(mayCancel);
}

/** Return those of some jobs that have lines which failed or are missing. */
export function retryable(jobs: readonly JobObject[]): JobObject[] {
  return jobs.filter((job) => mayRetry(job) && (job.state !== "succeeded" || job.progress.failed > 0));
}

/** Return whether a job is a batch: its lines can be read and selected. */
export function isBatch(job: Pick<JobObject, "kind">): boolean {
  return kindOf(job)?.resources.includes("batches") === true;
}

/** Return whether the lines of a job have results to read or to download. */
export function hasResults(job: Pick<JobObject, "kind">): boolean {
  return kindOf(job)?.has_lines === true;
}

/** A state that a job came into. `seconds` is how long it stayed, null for the state it is in. */
export interface Step {
  state: string;
  at: number;
  seconds: number | null;
}

/** Return the states that a job has been in, in order, with their times. */
export function lifeline(job: JobObject): Step[] {
  const times: readonly (readonly [state: string, at: number | null])[] = [
    ["queued", job.created_at],
    ["running", job.in_progress_at],
    ["finishing", job.finalizing_at],
    ["expiring", job.expiring_at],
    ["cancelling", job.cancelling_at],
    ["succeeded", job.completed_at],
    ["failed", job.failed_at],
    ["expired", job.expired_at],
    ["cancelled", job.cancelled_at],
  ];
  const steps = times.filter((step): step is readonly [string, number] => step[1] !== null);
  // The sort is stable: states of the same second stay in the order of a life.
  steps.sort(([, first], [, second]) => first - second);
  return steps.map(([state, at], index) => {
    const next = steps[index + 1];
    return { state, at, seconds: next === undefined ? null : next[1] - at };
  });
}
