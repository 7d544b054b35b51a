import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { Empty } from "@/components/Empty";
import { words } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Section } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { Prose } from "@/components/Prose";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { JobName } from "@/pages/jobs/JobName";
import { kindLabel } from "@/pages/jobs/life";

type Job = Schema<"JobObject">;

/** Jobs of a table; the page of all jobs has the rest. */
const SHOWN = 8;
/** Milliseconds between two readings of the progress, which is no event. */
const REFRESH = 5_000;

const FIRST: readonly Column<Job>[] = [
  { id: "id", header: "Job", cell: (job) => <JobName job={job} /> },
  { id: "kind", header: "Kind", cell: (job) => kindLabel(job.kind), wide: true },
  { id: "model", header: "Model", cell: (job) => job.model ?? "–", wide: true },
];
const RUNNING: readonly Column<Job>[] = [
  ...FIRST,
  { id: "progress", header: "Progress", cell: (job) => <JobProgress job={job} /> },
  { id: "since", header: "Since", cell: (job) => <Time at={job.in_progress_at ?? job.created_at} />, align: "end" },
];
const WAITING: readonly Column<Job>[] = [
  ...FIRST,
  { id: "reason", header: "Waits for", cell: (job) => <WaitReason job={job} /> },
  { id: "since", header: "Since", cell: (job) => <Time at={job.created_at} />, align: "end" },
];
const ENDED: readonly Column<Job>[] = [
  ...FIRST,
  { id: "state", header: "State", cell: (job) => <State state={job.state} /> },
  { id: "progress", header: "Lines", cell: (job) => <JobProgress job={job} />, wide: true },
  { id: "created", header: "Created", cell: (job) => <Time at={job.created_at} />, align: "end" },
];

/** Show the jobs that run and those that wait, and the latest ones. */
export function CurrentJobs() {
  const running = useJobs("running");
  const waiting = useJobs("queued");
  const latest = useJobs();
  return (
    <Loaded what="the jobs" query={latest}>
      {(page) =>
        page.data.length === 0 ? (
          <NoJobs />
        ) : (
          <>
            {running.data && <JobTable title="Running" page={running.data} columns={RUNNING} none="Nothing runs." />}
            {waiting.data && <JobTable title="Waiting" page={waiting.data} columns={WAITING} none="Nothing waits." />}
            <JobTable title="Latest jobs" page={page} columns={ENDED} none="" />
          </>
        )
      }
    </Loaded>
  );
}

function useJobs(state?: "running" | "queued") {
  const query = { state, limit: SHOWN };
  return useQuery({
    ...get("/v1/jobs", { query }),
    refetchInterval: REFRESH,
  });
}

interface JobTableProps {
  title: string;
  page: { data: Job[]; has_more: boolean };
  columns: readonly Column<Job>[];
  /** What stands in place of an empty table. */
  none: string;
}

function JobTable({ title, page, columns, none }: JobTableProps) {
  const count = page.has_more ? `more than ${page.data.length}` : page.data.length;
  return (
    <Section title={title} actions={title !== "Latest jobs" && page.data.length > 0 && <span className="muted">{count}</span>}>
      {page.data.length === 0 ? (
        <p className="muted">{none}</p>
      ) : (
        <Table
          label={title}
          columns={columns}
          rows={page.data}
          rowKey={(job) => job.id}
          rowLink={(job) => ({ to: "/jobs/$jobId", params: { jobId: job.id } })}
        />
      )}
    </Section>
  );
}

function JobProgress({ job }: { job: Job }) {
  const { total, completed, failed } = job.progress;
  return <Progress label={`Progress of ${job.id}`} total={total} completed={completed} failed={failed} />;
}

/** Show the reason that the API gives for the waiting of a job, or its short form until that is there. */
function WaitReason({ job }: { job: Job }) {
  const path = { job_id: job.id };
  const explanation = useQuery({
    ...get("/v1/jobs/{job_id}/explain", { path }),
    staleTime: 30_000,
  });
  const reason = explanation.data?.reasons.find((each) => each.type === "wait")?.message;
  return <Prose text={reason ?? words(job.waiting_for ?? "its turn")} />;
}

function NoJobs() {
  return (
    <Empty
      title="No jobs yet"
      command="nightmill submit questions.jsonl"
      sdk={
        'file = client.files.create(file=open("questions.jsonl", "rb"), purpose="batch")\n' +
        "client.batches.create(\n" +
        '    input_file_id=file.id,\n    endpoint="/v1/chat/completions",\n    completion_window="24h",\n)'
      }
      action={
        <Link to="/batches/new" className="button primary">
          New batch
        </Link>
      }
    >
      A batch runs a file of requests and gives each line exactly one result.
    </Empty>
  );
}
