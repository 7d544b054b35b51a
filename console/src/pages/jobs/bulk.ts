import { api, ApiError, take } from "@/api/client";
import { refresh } from "@/api/get";

import type { JobObject } from "./life";

/** Cancel jobs, one after the other. Raises: ApiError, once all were tried. */
export function cancelAll(jobs: readonly JobObject[]): Promise<void> {
  return changeEach(jobs, (path) => take(api.POST("/v1/jobs/{job_id}/cancel", { params: { path } })));
}

/** Run the lines of jobs again that failed or are missing, each as a new job. Raises: ApiError, once all were tried. */
export function retryAll(jobs: readonly JobObject[]): Promise<void> {
  return changeEach(jobs, (path) => take(api.POST("/v1/jobs/{job_id}/retry", { params: { path } })));
}

async function changeEach(jobs: readonly JobObject[], change: (path: { job_id: string }) => Promise<unknown>): Promise<void> {
  const refusals: ApiError[] = [];
  for (const job of jobs) {
    await change({ job_id: job.id }).catch((error: unknown) => {
      if (!(error instanceof ApiError)) throw error;
      refusals.push(error);
    });
  }
  await refresh("/v1/jobs");
  const [first] = refusals;
  if (first) throw new ApiError(first.status, `${refusals.length} of ${jobs.length} were refused. The first: ${first.message}`, first.code);
}
