import type { Schema } from "@/api/client";
import { STEP_KINDS } from "@/pages/pipelines/pipelines";

export type Schedule = Schema<"ScheduleObject">;
export type Kind = Schedule["kind"];

/** The kinds of jobs that a schedule submits: their words, and a request of one of them as an example. */
export const KINDS = {
  batch: { label: STEP_KINDS.batch.label, example: "" },
  fine_tuning: { label: STEP_KINDS.fine_tuning.label, example: "model: smollm2-135m-instruct\ntraining_file: dataset:tickets/train" },
  eval_run: {
    label: STEP_KINDS.eval_run.label,
    example: "eval_id: eval_68f0c2\ndata_source:\n  type: jsonl\n  source: {type: file_id, id: file-41c7}",
  },
  dataset: { label: STEP_KINDS.dataset.label, example: "dataset: tickets\nsources:\n  - {type: file_id, id: file-41c7}" },
  ingestion: { label: STEP_KINDS.ingestion.label, example: "vector_store_id: vs_71a9\nfile_ids: [file-41c7]" },
  drift_baseline: { label: STEP_KINDS.drift_baseline.label, example: "monitor_id: driftmon_71a9" },
  drift_check: { label: STEP_KINDS.drift_check.label, example: "monitor_id: driftmon_71a9" },
  pipeline: {
    label: "Pipeline",
    example: "name: weekly\nsteps:\n  - name: train\n    kind: fine_tuning\n    request:\n      model: smollm2-135m-instruct\n      training_file: dataset:tickets/train",
  },
} as const satisfies Readonly<Record<Kind, { label: string; example: string }>>;

/** The kinds with their words, as a choice offers them. */
export const KIND_OPTIONS = Object.entries(KINDS).map(([kind, { label }]) => [kind, label] as const);
