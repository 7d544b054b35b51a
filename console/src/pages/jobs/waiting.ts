import { linkOptions, type LinkProps } from "@tanstack/react-router";

import { words } from "@/components/format";

import type { JobObject } from "./life";

/** The reason why a job cannot go on, as the end of the sentence "Waiting: …", and the page where something can be done. */
export interface Wait {
  text: string;
  /** The time of Unix since which it holds, where that is known. */
  since: number | null;
  action: { label: string; link: LinkProps } | null;
}

type Waiter = Pick<JobObject, "id" | "state" | "model" | "model_status" | "waiting_for">;

const TEXTS: Readonly<Record<string, string>> = {
  waiting_for_job: "other jobs have to complete first",
  waiting_for_pause: "its queue, model or project is paused",
  waiting_for_time: "it begins later",
  waiting_for_vectors: "the vector database cannot be reached",
  waiting_for_device: "engines on the device of its training end what they run",
  waiting_for_checkpoint: "its training is paused, and makes a checkpoint first",
  waiting_for_worker: "no live worker serves its queue",
  waiting_for_spend_limit: "the spend limit of this month is reached",
  waiting_for_disk: "there is too little free space for its results",
};

/** Return why a job cannot go on; null where it does, or has ended. */
export function waitOf(job: Waiter): Wait | null {
  const { model_status: status, waiting_for: reason } = job;
  if (status?.status === "loading") return { text: "the model is loading", since: status.since ?? null, action: toModel(status.model) };
  if (status || reason === "waiting_for_model") return noWorker(status?.model ?? job.model);
  if (reason) return { text: TEXTS[reason] ?? words(reason), since: null, action: actionOf(job.id, reason) };
  return job.state === "queued" ? { text: "no worker has taken it up yet", since: null, action: null } : null;
}

function noWorker(model: string | null): Wait {
  return { text: `no live worker serves ${model ?? "its model"}`, since: null, action: model === null ? null : toModel(model) };
}

function toModel(model: string): Wait["action"] {
  return { label: "Show the model", link: linkOptions({ to: "/models", search: { model } }) };
}

function actionOf(jobId: string, reason: string): Wait["action"] {
  if (reason === "waiting_for_job") return { label: "Show them", link: linkOptions({ to: "/jobs/$jobId", params: { jobId }, search: { tab: "graph" } }) };
  if (reason === "waiting_for_pause") return { label: "Show the pauses", link: linkOptions({ to: "/workers" }) };
  return null;
}
