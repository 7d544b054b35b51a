import type { Schema } from "@/api/client";

export type Pipeline = Schema<"PipelineObject">;
export type Step = Schema<"PipelineStepObject">;

export const STATUSES = ["in_progress", "completed", "failed", "cancelling", "cancelled"] as const satisfies readonly Pipeline["status"][];

/** The kinds of steps: their words, and the purpose of the files that they read. */
export const STEP_KINDS = {
  batch: { label: "Batch", purpose: "batch" },
  fine_tuning: { label: "Fine-tuning", purpose: "fine-tune" },
  eval_run: { label: "Evaluation run", purpose: "evals" },
  dataset: { label: "Dataset version", purpose: "user_data" },
  ingestion: { label: "Files of a vector store", purpose: "user_data" },
  promotion: { label: "Promotion", purpose: "evals" },
  drift_baseline: { label: "Baseline of drift", purpose: "user_data" },
  drift_check: { label: "Check for drift", purpose: "user_data" },
} as const satisfies Readonly<Record<Step["kind"], { label: string; purpose: Schema<"CreateUpload">["purpose"] }>>;

/** Return whether a pipeline goes on. */
export function isLive({ status }: Pick<Pipeline, "status">): boolean {
  return status === "in_progress" || status === "cancelling";
}

/** Return whether the steps of a pipeline that have not completed can be run again. */
export function mayResume({ status }: Pick<Pipeline, "status">): boolean {
  return status === "failed" || status === "cancelled";
}

/** Return how many steps of a pipeline have completed, and how many have failed. */
export function stepCounts({ steps }: Pick<Pipeline, "steps">): { total: number; completed: number; failed: number } {
  const count = (status: Step["status"]) => steps.filter((step) => step.status === status).length;
  return { total: steps.length, completed: count("completed"), failed: count("failed") };
}
