import type { Schema } from "@/api/client";

export type GraphJob = Schema<"GraphJob">;

/** Return the jobs of a graph in layers: a job stands behind every job that it waits for. */
export function layers(jobs: readonly GraphJob[]): GraphJob[][] {
  const byId = new Map(jobs.map((job) => [job.id, job]));
  const depths = new Map<string, number>();
  // The server refuses cycles, and adds a job only behind those that are there: an order by time visits each once.
  const waiting = [...jobs];
  while (waiting.length > 0) {
    const job = waiting.pop()!;
    const open = job.after.filter((id) => byId.has(id) && !depths.has(id));
    if (open.length === 0) depths.set(job.id, 1 + Math.max(-1, ...job.after.map((id) => depths.get(id) ?? -1)));
    else waiting.push(job, ...open.map((id) => byId.get(id)!));
  }
  const result: GraphJob[][] = [];
  for (const job of jobs) (result[depths.get(job.id)!] ??= []).push(job);
  return result;
}
