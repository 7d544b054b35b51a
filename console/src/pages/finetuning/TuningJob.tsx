import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { useState, type ReactNode } from "react";

import { api } from "@/api/client";
import { get, POLL, refresh } from "@/api/get";
import { Button } from "@/components/Button";
import { Confirm } from "@/components/Confirm";
import { Failure } from "@/components/Failure";
import { formatCount, formatDuration, words } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Progress as ProgressBar } from "@/components/Progress";
import { Figure } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Time } from "@/components/Time";
import { EvaluationLink, PlaygroundLink } from "@/pages/fleet/models/ModelLinks";
import { waitOf } from "@/pages/jobs/waiting";
import { WaitSentence } from "@/pages/jobs/WaitSentence";

import { Checkpoints } from "./Checkpoints";
import { Comparison } from "./Comparison";
import { Curves } from "./Curves";
import { LineErrors } from "./LineErrors";
import { TuningEvents } from "./TuningEvents";
import { hasEnded, hyperparametersOf, methodOf, type Progress, type TuningJob as Job } from "./tuning";

const route = getRouteApi("/fine-tuning/$jobId");

/** Show a fine-tuning job: its curve while it trains, its checkpoints, events, numbers and data. */
export default function TuningJob() {
  const { jobId } = route.useParams();
  const path = { fine_tuning_job_id: jobId };
  const job = useQuery({
    ...get("/v1/fine_tuning/jobs/{fine_tuning_job_id}", { path }),
    refetchInterval: ({ state }) => state.data && !hasEnded(state.data) && POLL,
  });
  return (
    <Loaded what="the job" query={job} page="Fine-tuning job">
      {(job) => <Shown job={job} />}
    </Loaded>
  );
}

function Waiting({ job, reason }: { job: Job; reason: string }) {
  const wait = waitOf({ id: job.id, state: "running", model: job.model, model_status: null, waiting_for: reason });
  return <p className="banner">{job.status === "paused" ? "The job is paused until it is resumed." : wait && <WaitSentence wait={wait} />}</p>;
}

function Shown({ job }: { job: Job }) {
  const path = { fine_tuning_job_id: job.id };
  const refetchInterval = !hasEnded(job) && POLL;
  const progress = useQuery({
    ...get("/v1/fine_tuning/jobs/{fine_tuning_job_id}/progress", { path }),
    // The last look is after the end,
    refetchInterval,
  });
  return (
    <Page title={job.user_provided_suffix ?? "Fine-tuning job"} badge={<State state={job.status} />} description={<Id id={job.id} />} actions={<Actions job={job} />}>
      <div className="stack">
        {job.error && (
          <div className="failure">
            <strong>{words(job.error.code)}</strong>
            <p>{job.error.message}</p>
          </div>
        )}
        {job.status === "failed" && <LineErrors jobId={job.id} />}
        {job.waiting_for && <Waiting job={job} reason={job.waiting_for} />}
        {job.fine_tuned_model && <Result name={job.fine_tuned_model} />}
        <Loaded what="the progress" query={progress}>
          {(progress) => <Trained job={job} progress={progress} />}
        </Loaded>
      </div>
      <Checkpoints jobId={job.id} refetchInterval={refetchInterval} />
      <Hyperparameters job={job} />
      <Comparison job={job} points={progress.data?.data ?? []} />
      <Data job={job} progress={progress.data} />
      <TuningEvents jobId={job.id} refetchInterval={refetchInterval} />
    </Page>
  );
}

function Result({ name }: { name: string }) {
  return (
    <Card>
      <div className="row">
        <ObjectLink withCopy id={name} kind="model" />
        <PlaygroundLink model={name} />
        <EvaluationLink model={name} />
      </div>
    </Card>
  );
}

function Trained({ job, progress }: { job: Job; progress: Progress }) {
  const last = progress.data.at(-1);
  return (
    <>
      <ProgressBar withNumbers label="Steps trained" total={progress.steps ?? 0} completed={progress.trained_steps} />
      <Card>
        <div className="grid">
          <Figure name="Training loss" value={last ? last.train_loss.toFixed(3) : "–"} />
          <Figure name="Training time" value={formatDuration(progress.device_seconds)} remark={`workers held it ${formatDuration(progress.seconds)}`} />
          <Figure name="Speed" value={last?.tokens_per_second ? `${last.tokens_per_second.toFixed(0)} tokens/s` : "–"} />
          {job.estimated_finish !== null && !hasEnded(job) && <Figure name="Expected to end" value={<Time at={job.estimated_finish} />} />}
        </div>
      </Card>
      <Curves points={progress.data} />
    </>
  );
}

function Hyperparameters({ job }: { job: Job }) {
  const facts: (readonly [string, ReactNode])[] = [
    ["Model", <ObjectLink key="model" id={job.model} kind="model" />],
    ["Method", methodOf(job)],
    ...hyperparametersOf(job).map(([name, value]) => [words(name), String(value)] as const),
    ["Seed", job.seed],
    ["Rank", job.peft === "full" ? null : job.training.rank],
    ["Scheduler", job.training.scheduler],
    ["Job", <ObjectLink key="job" id={job.id} kind="job" />],
    ["Project", job.organization_id],
    ["Created", <Time key="created" at={job.created_at} />],
    ["Ended", job.finished_at && <Time key="ended" at={job.finished_at} />],
    ...Object.entries(job.metadata ?? {}),
  ];
  return (
    <Section title="Hyperparameters">
      <Card>
        <Facts facts={facts} />
      </Card>
    </Section>
  );
}

function Data({ job, progress }: { job: Job; progress: Progress | undefined }) {
  const validation = job.validation && `${job.validation.type}${job.validation.type === "file" ? "" : `, ${job.validation.fraction}`}`;
  const facts: (readonly [string, ReactNode])[] = [
    ["Training file", <ObjectLink withCopy key="training" id={job.training_file} />],
    ["Validation file", job.validation_file && <ObjectLink withCopy key="validation" id={job.validation_file} />],
    ["Validation", validation],
    ["File of general text", job.general_file && <ObjectLink withCopy key="general" id={job.general_file} />],
    ["Examples", progress?.examples && formatCount(progress.examples, "example")],
    ["Of these for validation", progress?.validation_examples && formatCount(progress.validation_examples, "example")],
    ["Tokens of an epoch", progress?.tokens && formatCount(progress.tokens, "token")],
    ["Trained tokens", job.trained_tokens && formatCount(job.trained_tokens, "token")],
    ...job.result_files.map((id, index) => [`Result file ${index + 1}`, <ObjectLink withCopy key={id} id={id} />] as const),
  ];
  return (
    <Section title="Data">
      <Card>
        <Facts facts={facts} />
      </Card>
    </Section>
  );
}

type Verb = "pause" | "resume" | "cancel";

function Actions({ job }: { job: Job }) {
  const [isAsking, setAsking] = useState(false);
  const steer = useMutation({ mutationFn: (verb: Verb) => change(job.id, verb) });
  if (hasEnded(job)) {
    return (
      <Link to="/fine-tuning/new" search={{ model: job.model, file: job.training_file }} className="button">
        Train again
      </Link>
    );
  }
  return (
    <>
      {steer.isError && <Failure error={steer.error} />}
      {job.status === "paused" ? (
        <Button tone="primary" busy={steer.isPending} onClick={() => steer.mutate("resume")}>
          Resume
        </Button>
      ) : (
        <Button busy={steer.isPending} onClick={() => steer.mutate("pause")}>
          Pause
        </Button>
      )}
      <Button onClick={() => setAsking(true)}>Cancel</Button>
      <Confirm title="Cancel this job?" action="Cancel the job" open={isAsking} onClose={() => setAsking(false)} onConfirm={() => change(job.id, "cancel")}>
        <p>The training stops. Its checkpoints stay and can be asked as models.</p>
      </Confirm>
    </>
  );
}

/** Pause, resume or cancel a job, and read it again. */
async function change(jobId: string, verb: Verb): Promise<void> {
  const params = { path: { fine_tuning_job_id: jobId } };
  await api.POST(`/v1/fine_tuning/jobs/{fine_tuning_job_id}/${verb}`, { params });
  await refresh("/v1/fine_tuning/jobs/{fine_tuning_job_id}", "/v1/fine_tuning/jobs");
}
