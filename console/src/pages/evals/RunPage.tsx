import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState, type ReactNode } from "react";

import { api } from "@/api/client";
import { get, POLL, refresh } from "@/api/get";
import { Button } from "@/components/Button";
import { Confirm } from "@/components/Confirm";
import { formatNumber, formatShare, words } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { Figure } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Tabs } from "@/components/Tabs";
import { Time } from "@/components/Time";

import { Classification } from "./Classification";
import { ComparisonTab } from "./ComparisonTab";
import { hasEnded, itemsFileOf, passShare, type Run } from "./evals";
import { RunAgain } from "./NewRun";
import { OutputItems } from "./OutputItems";

const route = getRouteApi("/evals/$evalId/runs/$runId");

type CriterionResult = NonNullable<Run["per_testing_criteria_results"]>[number];
type ModelUsage = NonNullable<Run["per_model_usage"]>[number];

const RESULTS: readonly Column<CriterionResult>[] = [
  { id: "name", header: "Criterion", cell: (row) => <span className="break">{row.testing_criteria}</span>, sort: (row) => row.testing_criteria },
  { id: "share", header: "Pass", cell: (row) => share(row), sort: passShare, align: "end" },
  { id: "passed", header: "Passed", cell: (row) => formatNumber(row.passed), sort: (row) => row.passed, align: "end", wide: true },
  { id: "failed", header: "Failed", cell: (row) => formatNumber(row.failed), sort: (row) => row.failed, align: "end", wide: true },
  { id: "errored", header: "Errored", cell: (row) => formatNumber(row.errored), sort: (row) => row.errored, align: "end" },
  { id: "mean", header: "Mean score", cell: (row) => row.mean_score?.toFixed(3) ?? "–", sort: (row) => row.mean_score, align: "end" },
];
const USAGE: readonly Column<ModelUsage>[] = [
  { id: "model", header: "Model", cell: (row) => <span className="break">{row.model_name}</span>, sort: (row) => row.model_name },
  { id: "requests", header: "Requests", cell: (row) => formatNumber(row.invocation_count), sort: (row) => row.invocation_count, align: "end" },
  { id: "prompt", header: "Prompt tokens", cell: (row) => formatNumber(row.prompt_tokens), sort: (row) => row.prompt_tokens, align: "end", wide: true },
  { id: "completion", header: "Completion tokens", cell: (row) => formatNumber(row.completion_tokens), sort: (row) => row.completion_tokens, align: "end" },
];

function share(counts: { passed: number; failed: number; errored: number }): string {
  const value = passShare(counts);
  return value === null ? "–" : formatShare(value);
}

/** Show a run of an evaluation: its counts, criteria and items, and its comparison with another run. */
export default function RunPage() {
  const { evalId, runId } = route.useParams();
  const path = { eval_id: evalId, run_id: runId };
  const run = useQuery({
    ...get("/v1/evals/{eval_id}/runs/{run_id}", { path }),
    refetchInterval: ({ state }) => state.data && !hasEnded(state.data) && POLL,
  });
  return (
    <Loaded what="the run" query={run} page="Run">
      {(run) => <Shown run={run} />}
    </Loaded>
  );
}

function Shown({ run }: { run: Run }) {
  const { tab } = route.useSearch();
  const navigate = route.useNavigate();
  const tabs = [
    { id: "results", title: "Results", content: <Results run={run} /> },
    { id: "comparison", title: "Comparison", content: <ComparisonTab run={run} /> },
  ];
  return (
    <Page title={run.name || "Run"} badge={<State state={run.status} />} description={<Id id={run.id} />} actions={<Actions run={run} />}>
      <Tabs
        label="Parts of the run"
        value={tab ?? "results"}
        onChange={(id) => void navigate({ search: (search) => ({ ...search, tab: id === "comparison" ? id : undefined }) })}
        tabs={tabs}
      />
    </Page>
  );
}

function Results({ run }: { run: Run }) {
  const { total, passed, failed, errored } = run.result_counts;
  const itemsFile = itemsFileOf(run);
  const facts: (readonly [string, ReactNode])[] = [
    ["Evaluation", <ObjectLink key="eval" id={run.eval_id} />],
    ["Model", run.model === null ? "none: the items have their samples" : <ObjectLink key="model" id={run.model} kind="model" />],
    ["Items", itemsFile !== null && <ObjectLink key="items" id={itemsFile} />],
    ["Job", <ObjectLink key="job" id={run.id} kind="job" />],
    ["Created", <Time key="created" at={run.created_at} />],
    ["Imported from", run.imported_from],
    ...Object.entries(run.metadata ?? {}),
  ];
  const classified = run.per_testing_criteria_results?.filter(({ classification }) => classification) ?? [];
  return (
    <>
      <div className="stack">
        {run.error && (
          <div className="failure">
            <strong>{words(run.error.code)}</strong>
            <p>{run.error.message}</p>
          </div>
        )}
        {!hasEnded(run) && <p className="banner">The run goes on: counts and items follow it.</p>}
        <Card>
          <div className="grid">
            <Figure name="Pass" value={share(run.result_counts)} remark={`${formatNumber(passed)} of ${formatNumber(total)} items`} />
            <Figure name="Failed" value={formatNumber(failed)} />
            <Figure name="Errored" value={formatNumber(errored)} remark="without a grade" />
          </div>
        </Card>
        <Progress label="Items that passed and failed" total={total} completed={passed} failed={failed} />
        <Facts facts={facts} />
      </div>
      {run.per_testing_criteria_results && (
        <Section title="Criteria">
          <Table label="Criteria" columns={RESULTS} rows={run.per_testing_criteria_results} rowKey={(row) => row.testing_criteria} />
        </Section>
      )}
      {classified.map((row) => (
        <Classification key={row.testing_criteria} criterion={row.testing_criteria} result={row.classification!} kappa={row.agreement?.kappa} />
      ))}
      {run.per_model_usage && run.per_model_usage.length > 0 && (
        <Section title="Usage">
          <Table label="Usage by model" columns={USAGE} rows={run.per_model_usage} rowKey={(row) => row.model_name} />
        </Section>
      )}
      <OutputItems run={run} />
    </>
  );
}

function Actions({ run }: { run: Run }) {
  const [open, setOpen] = useState<"again" | "end" | null>(null);
  const close = () => setOpen(null);
  const navigate = route.useNavigate();
  const params = { path: { eval_id: run.eval_id, run_id: run.id } };
  const ended = hasEnded(run);

  async function act() {
    if (!ended) {
      await api.POST("/v1/evals/{eval_id}/runs/{run_id}/cancel", { params });
      await refresh("/v1/evals/{eval_id}/runs/{run_id}");
      return;
    }
    await api.DELETE("/v1/evals/{eval_id}/runs/{run_id}", { params });
    await refresh("/v1/evals/{eval_id}/runs");
    await navigate({ to: "/evals/$evalId", params: { evalId: run.eval_id } });
  }

  return (
    <>
      {typeof run.data_source.model === "string" && <Button onClick={() => setOpen("again")}>Run with another model</Button>}
      <Button onClick={() => setOpen("end")}>{ended ? "Delete" : "Cancel"}</Button>
      <Confirm
        title={ended ? "Delete this run?" : "Cancel this run?"}
        action={ended ? "Delete the run" : "Cancel the run"}
        open={open === "end"}
        onClose={close}
        onConfirm={act}
      >
        <p>{ended ? "Its items and grades are deleted for good." : "It stops, and the jobs that ask models for it. Graded items stay."}</p>
      </Confirm>
      {open === "again" && <RunAgain run={run} onClose={close} />}
    </>
  );
}
