import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import { api, take } from "@/api/client";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { words } from "@/components/format";
import { Loading } from "@/components/Loading";
import { State } from "@/components/State";

import { layers, type GraphJob } from "./layers";
import { kindLabel } from "./life";

const REFRESH = 5_000;

/** Show the jobs that a job waits for and those that wait for it, from left to right. */
export function Graph({ jobId, live }: { jobId: string; live: boolean }) {
  const path = { job_id: jobId };
  const graph = useQuery({
    queryKey: ["/v1/jobs/{job_id}/graph", path, live],
    queryFn: ({ signal }) => take(api.GET("/v1/jobs/{job_id}/graph", { params: { path }, signal })),
    refetchInterval: live && REFRESH,
  });
  if (graph.isPending) return <Loading what="the dependencies" />;
  if (graph.isError) return <Failure title="The dependencies could not be read" error={graph.error} onRetry={() => void graph.refetch()} />;
  if (graph.data.jobs.length < 2) return <Alone jobId={jobId} />;
  return (
    <>
      {graph.data.truncated && <p className="banner">There are more dependencies than are shown.</p>}
      <div className="graph">
        {layers(graph.data.jobs).map((layer, depth) => (
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
