import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, queries, take } from "@/api/client";
import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Tabs } from "@/components/Tabs";

import { Events } from "./Events";
import { Graph } from "./Graph";
import { hasResults, isLive, kindLabel, mayCancel, mayRetry, type JobObject } from "./life";
import { Overview } from "./Overview";
import { Results } from "./Results";
import { Retry } from "./Retry";
import type { JobTab } from "./address";
import { Webhook } from "./Webhook";

const route = getRouteApi("/jobs/$jobId");

/** Milliseconds between two readings of a job that goes on. */
const REFRESH = 2_000;

/** Show a job: how far it is, what it waits for, its results, and what can be done about it. */
export default function Job() {
  const { jobId } = route.useParams();
  const path = { job_id: jobId };
  const job = useQuery({
    ...get("/v1/jobs/{job_id}", { path }),
    refetchInterval: ({ state }) => state.data && isLive(state.data) && REFRESH,
  });
  return (
    <Loaded what="the job" query={job} page="Job">
      {(job) => (
        <Page title={job.name ?? kindLabel(job.kind)} badge={<State state={job.state} />} description={<Identity job={job} />} actions={<Actions job={job} />}>
          <Parts job={job} />
        </Page>
      )}
    </Loaded>
  );
}

function Identity({ job }: { job: JobObject }) {
  return (
    <span className="row">
      {job.name !== null && kindLabel(job.kind)}
      <Id id={job.id} />
    </span>
  );
}

function Parts({ job }: { job: JobObject }) {
  const { tab = "overview" } = route.useSearch();
  const navigate = route.useNavigate();
  const tabs = [
    { id: "overview", title: "Overview", content: <Overview job={job} /> },
    ...(hasResults(job) ? [{ id: "results", title: "Results", content: <Results job={job} /> }] : []),
    { id: "events", title: "Events", content: <Events jobId={job.id} live={isLive(job)} /> },
    { id: "webhook", title: "Webhook", content: <Webhook job={job} /> },
    { id: "graph", title: "Dependencies", content: <Graph jobId={job.id} live={isLive(job)} /> },
  ];
  return (
    <Tabs
      label="Parts of the job"
      value={tabs.some(({ id }) => id === tab) ? tab : "overview"}
      onChange={(id) => void navigate({ search: { tab: id as JobTab } })}
      tabs={tabs}
    />
  );
}

function Actions({ job }: { job: JobObject }) {
  const [isRetrying, setRetrying] = useState(false);
  async function cancel() {
    const path = { job_id: job.id };
    const cancelled = await take(api.POST("/v1/jobs/{job_id}/cancel", { params: { path } }));
    queries.setQueryData(get("/v1/jobs/{job_id}", { path }).queryKey, cancelled);
  }
  return (
    <>
      {mayCancel(job) && (
        <ConfirmButton label="Cancel" title="Cancel this job?" action="Cancel the job" onConfirm={cancel}>
          <p>Lines that are finished keep their results. The others are not run; a retry can run them as a new job.</p>
        </ConfirmButton>
      )}
      {mayRetry(job) && <Button onClick={() => setRetrying(true)}>Retry</Button>}
      {isRetrying && <Retry job={job} onClose={() => setRetrying(false)} />}
    </>
  );
}
