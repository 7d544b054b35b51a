import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { Empty } from "@/components/Empty";
import { words } from "@/components/format";
import { After, LayeredGraph } from "@/components/LayeredGraph";
import { Loaded } from "@/components/Loaded";
import { State } from "@/components/State";

import { kindLabel } from "./life";

type GraphJob = Schema<"GraphJob">;

const REFRESH = 5_000;

/** Show the jobs that a job waits for and those that wait for it, from left to right. */
export function Graph({ jobId, live }: { jobId: string; live: boolean }) {
  const path = { job_id: jobId };
  const graph = useQuery({
    ...get("/v1/jobs/{job_id}/graph", { path }),
    refetchInterval: live && REFRESH,
  });
  return (
    <Loaded what="the dependencies" query={graph}>
      {({ jobs, truncated }) => (jobs.length < 2 ? <Alone jobId={jobId} /> : <Layers jobs={jobs} truncated={truncated} jobId={jobId} />)}
    </Loaded>
  );
}

function Layers({ jobs, truncated, jobId }: { jobs: readonly GraphJob[]; truncated: boolean; jobId: string }) {
  return (
    <>
      {truncated && <p className="banner">There are more dependencies than are shown.</p>}
      <LayeredGraph nodes={jobs} currentId={jobId}>
        {(job) => <Node job={job} isCurrent={job.id === jobId} />}
      </LayeredGraph>
    </>
  );
}

function Node({ job, isCurrent }: { job: GraphJob; isCurrent: boolean }) {
  return (
    <>
      <div className="row">
        <State state={job.state} />
        <span>{kindLabel(job.kind)}</span>
      </div>
      {isCurrent ? <code className="break">{job.id}</code> : <JobLink id={job.id} />}
      {job.waiting_for && <span className="muted small">{words(job.waiting_for)}</span>}
      <After after={job.after} noun="jobs" />
    </>
  );
}

function JobLink({ id }: { id: string }) {
  return (
    <Link to="/jobs/$jobId" params={{ jobId: id }} search={{ tab: "graph" }} className="break">
      <code>{id}</code>
    </Link>
  );
}

function Alone({ jobId }: { jobId: string }) {
  return (
    <Empty
      title="This job waits for no other, and none waits for it"
      command={`nightmill submit next.jsonl --after ${jobId}`}
      sdk={`batch = client.batches.create(
    input_file_id=file.id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
    extra_body={"after": ["${jobId}"]},
)`}
    >
      A job can begin when others have completed.
    </Empty>
  );
}
