import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";

import { api, queries, take } from "@/api/client";
import { get, POLL, refresh } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Failure } from "@/components/Failure";
import { After, LayeredGraph } from "@/components/LayeredGraph";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { Duration } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { isLive, mayResume, STEP_KINDS, stepCounts, type Pipeline, type Step } from "./pipelines";
import { StepResults } from "./StepResults";

const route = getRouteApi("/pipelines/$pipelineId");

/** Show a pipeline: its steps as a graph, with their jobs, results and errors. */
export default function PipelinePage() {
  const { pipelineId } = route.useParams();
  const pipeline = useQuery({
    ...get("/v1/pipelines/{pipeline_id}", { path: { pipeline_id: pipelineId } }),
    refetchInterval: ({ state }) => state.data && isLive(state.data) && POLL,
  });
  return (
    <Loaded what="the pipeline" query={pipeline} page="Pipeline">
      {(pipeline) => (
        <Page title={pipeline.name ?? "Pipeline"} badge={<State state={pipeline.status} />} description={<Id id={pipeline.id} />} actions={<Actions pipeline={pipeline} />}>
          <Summary pipeline={pipeline} />
          <Section title="Graph">
            <LayeredGraph nodes={pipeline.steps.map((step) => ({ ...step, id: step.name, step }))}>{({ step }) => <Node step={step} />}</LayeredGraph>
          </Section>
          <Section title="Steps">
            <Table label="Steps" columns={COLUMNS} rows={pipeline.steps} rowKey={({ name }) => name} />
          </Section>
        </Page>
      )}
    </Loaded>
  );
}

function Summary({ pipeline }: { pipeline: Pipeline }) {
  const { created_at: created, ended_at: ended, resumed_from: former } = pipeline;
  return (
    <Card>
      <Facts
        facts={[
          ["Completed steps", <Progress key="steps" label="Completed steps" {...stepCounts(pipeline)} withNumbers />],
          ["Created", <Time key="created" at={created} />],
          ["Ended", ended !== null && <Time key="ended" at={ended} />],
          ["Took", ended !== null && <Duration key="took" seconds={ended - created} />],
          ["Resumed from", former !== null && <ObjectLink key="former" id={former} />],
          [
            "Job",
            <Link key="job" to="/jobs/$jobId" params={{ jobId: pipeline.id }} search={{ tab: "events" }}>
              Events of the pipeline
            </Link>,
          ],
          ...Object.entries(pipeline.metadata ?? {}),
        ]}
      />
    </Card>
  );
}

function Node({ step }: { step: Step }) {
  return (
    <>
      <div className="row">
        <State state={step.status} />
        <span>{STEP_KINDS[step.kind].label}</span>
      </div>
      <strong className="break">{step.name}</strong>
      <After after={step.after} noun="steps" />
    </>
  );
}

const COLUMNS: readonly Column<Step>[] = [
  { id: "name", header: "Step", cell: ({ name }) => <strong className="break">{name}</strong>, sort: ({ name }) => name },
  { id: "kind", header: "Kind", cell: ({ kind }) => STEP_KINDS[kind].label, sort: ({ kind }) => kind, wide: true },
  { id: "status", header: "State", cell: ({ status }) => <State state={status} />, sort: ({ status }) => status },
  { id: "job", header: "Job", cell: ({ job_id }) => (job_id === null ? "–" : <ObjectLink id={job_id} />) },
  { id: "results", header: "Results", cell: (step) => <Results step={step} /> },
];

/** Show what a step has made, or why it has failed. */
function Results({ step }: { step: Step }) {
  return (
    <div className="stack">
      {step.error && (
        <span className="bad break">
          <code>{step.error.code}</code> {step.error.message}
        </span>
      )}
      {step.job_id === null ? !step.error && "–" : <StepResults step={step} jobId={step.job_id} />}
    </div>
  );
}

function Actions({ pipeline }: { pipeline: Pipeline }) {
  const navigate = route.useNavigate();
  const path = { pipeline_id: pipeline.id };
  async function cancel() {
    const cancelled = await take(api.POST("/v1/pipelines/{pipeline_id}/cancel", { params: { path } }));
    queries.setQueryData(get("/v1/pipelines/{pipeline_id}", { path }).queryKey, cancelled);
  }
  const resume = useMutation({
    mutationFn: () => take(api.POST("/v1/pipelines/{pipeline_id}/resume", { params: { path } })),
    onSuccess: async ({ id }) => {
      await refresh("/v1/pipelines");
      await navigate({ to: "/pipelines/$pipelineId", params: { pipelineId: id } });
    },
  });
  return (
    <>
      {resume.isError && <Failure title="The pipeline was not resumed" error={resume.error} />}
      {pipeline.status === "in_progress" && (
        <ConfirmButton label="Cancel" title="Cancel this pipeline?" action="Cancel the pipeline" onConfirm={cancel}>
          <p>The jobs of its steps are cancelled. What has completed keeps its results, and a resume goes on from there.</p>
        </ConfirmButton>
      )}
      {mayResume(pipeline) && (
        <Button busy={resume.isPending} title="Run the steps that have not completed, as a new pipeline" onClick={() => resume.mutate()}>
          Resume
        </Button>
      )}
    </>
  );
}
