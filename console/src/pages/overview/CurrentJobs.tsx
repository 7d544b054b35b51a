import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { Empty } from "@/components/Empty";
import { Loaded } from "@/components/Loaded";
import { Section } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { JobName } from "@/pages/jobs/JobName";
import { kindLabel } from "@/pages/jobs/life";
import { WaitOfJob } from "@/pages/jobs/WaitSentence";
import { waitOf } from "@/pages/jobs/waiting";

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
  { id: "reason", header: "Reason", cell: (job) => <WaitOfJob job={job} /> },
  { id: "since", header: "Since", cell: (job) => <Time at={job.created_at} />, align: "end" },
];
const ENDED: readonly Column<Job>[] = [
  ...FIRST,
  { id: "state", header: "State", cell: (job) => <State state={job.state} /> },
  { id: "progress", header: "Lines", cell: (job) => <JobProgress job={job} />, wide: true },
  { id: "created", header: "Created", cell: (job) => <Time at={job.created_at} />, align: "end" },
];

/** Show the jobs that run and those that cannot go on, and the latest ones. */
export function CurrentJobs() {
  const started = useJobs("running");
  const queued = useJobs("queued");
  const latest = useJobs();
  const isWaiting = (job: Job) => waitOf(job) !== null;
  return (
    <Loaded what="the jobs" query={latest}>
      {(page) =>
        page.data.length === 0 ? (
          <NoJobs />
        ) : (
          <>
            {started.data && <JobTable title="Running" page={only(started.data, (job) => !isWaiting(job))} columns={RUNNING} none="Nothing runs." />}
            {started.data && queued.data && (
              <JobTable title="Waiting" page={joined(only(started.data, isWaiting), queued.data)} columns={WAITING} none="Nothing waits." />
            )}
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

interface JobPage {
  data: Job[];
  has_more: boolean;
}

function only({ data, has_more }: JobPage, holds: (job: Job) => boolean): JobPage {
  return { data: data.filter(holds), has_more };
}

function joined(first: JobPage, second: JobPage): JobPage {
  return { data: [...first.data, ...second.data], has_more: first.has_more || second.has_more };
}

interface JobTableProps {
  title: string;
  page: JobPage;
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
