import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import { get } from "@/api/get";
import { Empty } from "@/components/Empty";
import { words } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { State } from "@/components/State";

import { layers, type GraphJob } from "./layers";
import { kindLabel } from "./life";

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
      <div className="graph">
        {layers(jobs).map((layer, depth) => (
          <ul key={depth} className="plain" aria-label={`Step ${depth + 1}`}>
            {layer.map((job) => (
              <Node key={job.id} job={job} isCurrent={job.id === jobId} />
            ))}
          </ul>
        ))}
      </div>
    </>
  );
}

function Node({ job, isCurrent }: { job: GraphJob; isCurrent: boolean }) {
  return (
    <li className={isCurrent ? "card stack current" : "card stack"} aria-current={isCurrent || undefined}>
      <div className="row">
        <State state={job.state} />
        <span>{kindLabel(job.kind)}</span>
      </div>
      {isCurrent ? <code className="break">{job.id}</code> : <JobLink id={job.id} />}
      {job.waiting_for && <span className="muted small">{words(job.waiting_for)}</span>}
      {job.after.length > 0 && (
        <span className="muted small break">
          after {job.after.length === 1 ? "" : `${job.after.length} jobs: `}
          {job.after.slice(0, 5).join(", ")}
          {job.after.length > 5 && " …"}
        </span>
      )}
    </li>
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
