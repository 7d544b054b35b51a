import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import { get, POLL } from "@/api/get";
import { formatNumber } from "@/components/format";
import { ObjectLink } from "@/components/ObjectLink";
import { Progress } from "@/components/Progress";
import type { JobObject } from "@/pages/jobs/life";

import type { Step } from "./pipelines";

/** Show the results of the job of a step, and how far the job is while it goes on. */
export function StepResults({ step, jobId }: { step: Step; jobId: string }) {
  const job = useQuery({ ...get("/v1/jobs/{job_id}", { path: { job_id: jobId } }), refetchInterval: step.status === "in_progress" && POLL });
  if (job.data === undefined) return null;
  const { progress } = job.data;
  return (
    <>
      {step.status === "in_progress" && <Progress label={`Progress of ${step.name}`} total={progress.total} completed={progress.completed} failed={progress.failed} />}
      <Made step={step} job={job.data} />
    </>
  );
}

function Made({ step, job }: { step: Step; job: JobObject }) {
  if (step.kind === "batch") return <BatchFiles job={job} />;
  if (step.status !== "completed") return null;
  if (step.kind === "fine_tuning") return <TunedModel jobId={job.id} />;
  if (job.eval_id) return <Grades evalId={job.eval_id} runId={job.id} />;
  const made = job.dataset_id ?? job.vector_store_id;
  return made && <ObjectLink id={made} />;
}

function BatchFiles({ job: { output_file_id: output, error_file_id: errors } }: { job: JobObject }) {
  return (
    <>
      {output && (
        <span>
          output <ObjectLink id={output} />
        </span>
      )}
      {errors && (
        <span>
          failed lines <ObjectLink id={errors} />
        </span>
      )}
    </>
  );
}

function TunedModel({ jobId }: { jobId: string }) {
  const job = useQuery(get("/v1/fine_tuning/jobs/{fine_tuning_job_id}", { path: { fine_tuning_job_id: jobId } }));
  const model = job.data?.fine_tuned_model;
  return model && <ObjectLink id={model} kind="model" />;
}

function Grades({ evalId, runId }: { evalId: string; runId: string }) {
  const run = useQuery(get("/v1/evals/{eval_id}/runs/{run_id}", { path: { eval_id: evalId, run_id: runId } }));
  if (run.data === undefined) return null;
  const { passed, total } = run.data.result_counts;
  return (
    <Link to="/evals/$evalId/runs/$runId" params={{ evalId, runId }}>
      {formatNumber(passed)} of {formatNumber(total)} passed
    </Link>
  );
}
