import { getRouteApi, Link } from "@tanstack/react-router";

import { usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Field, Select } from "@/components/Field";
import { TextFilter, TimeFilter } from "@/components/Filters";
import { words } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { Quantity } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { JobName } from "./JobName";
import { kindLabel, KINDS, STATES, type JobObject } from "./life";
import { metadataPairs, type JobsSearch } from "./address";

const route = getRouteApi("/jobs");

/** Milliseconds between two readings of the progress; a change of a state is told by the feed of events. */
const REFRESH = 5_000;

const COLUMNS: readonly Column<JobObject>[] = [
  { id: "id", header: "Job", cell: (job) => <JobName job={job} /> },
  { id: "kind", header: "Kind", cell: (job) => kindLabel(job.kind), sort: (job) => kindLabel(job.kind), wide: true },
  {
    id: "state",
    header: "State",
    cell: (job) => <State state={job.state} title={job.waiting_for ? words(job.waiting_for) : undefined} />,
    sort: (job) => job.state,
  },
  { id: "model", header: "Model", cell: (job) => job.model ?? "–", sort: (job) => job.model, wide: true },
  {
    id: "progress",
    header: "Progress",
    cell: ({ id, progress }) => (
      <Progress label={`Progress of ${id}`} total={progress.total} completed={progress.completed} failed={progress.failed} />
    ),
    sort: (job) => job.progress.fraction,
  },
  {
    id: "lines",
    header: "Lines",
    cell: (job) => <Quantity value={job.progress.total} />,
    sort: (job) => job.progress.total,
    align: "end",
    wide: true,
  },
  {
    id: "failed",
    header: "Failed",
    cell: (job) => (job.progress.failed > 0 ? <span className="bad"><Quantity value={job.progress.failed} /></span> : "–"),
    sort: (job) => job.progress.failed,
    align: "end",
    wide: true,
  },
  {
    id: "tokens",
    header: "Tokens",
    cell: (job) => <Quantity value={job.usage.total_tokens} compact />,
    sort: (job) => job.usage.total_tokens,
    align: "end",
    wide: true,
  },
  { id: "created", header: "Created", cell: (job) => <Time at={job.created_at} />, sort: (job) => job.created_at, align: "end" },
];

/** List the jobs of the project, of every kind. */
export default function Jobs() {
  const search = route.useSearch();
  const jobs = useJobs(search);
  const isFiltered = Object.values(search).some((value) => value !== undefined);
  return (
    <Page title="Jobs" actions={<Link to="/batches/new" className="button primary">New batch</Link>}>
      <Filters search={search} />
      <Listed what="the jobs" query={jobs} empty={isFiltered ? <NoMatch /> : <NoJobs />}>
        <Table
          label="Jobs"
          columns={COLUMNS}
          rows={jobs.rows}
          rowKey={(job) => job.id}
          rowLink={(job) => ({ to: "/jobs/$jobId", params: { jobId: job.id } })}
        />
      </Listed>
    </Page>
  );
}

function useJobs({ metadata, state, ...others }: JobsSearch) {
  // The document of the API has no name for a parameter whose name holds the name of an entry.
  const entries = { metadata: Object.fromEntries(metadataPairs(metadata ?? "")) };
  const query = { ...others, ...entries, state: state as "queued" | undefined, limit: 50 };
  return usePages("/v1/jobs", { query }, { refetchInterval: REFRESH });
}

function Filters({ search }: { search: JobsSearch }) {
  const navigate = route.useNavigate();
  const change = (changes: JobsSearch) => void navigate({ search: { ...search, ...changes }, replace: true });
  return (
    <form className="filters" role="search" aria-label="Jobs" onSubmit={(event) => event.preventDefault()}>
      <Field label="Kind">
        <Select value={search.kind ?? ""} onChange={(kind) => change({ kind: kind || undefined })} options={[["", "All"], ...KINDS]} />
      </Field>
      <Field label="State">
        <Select
          value={search.state ?? ""}
          onChange={(state) => change({ state: state || undefined })}
          options={[["", "All"], ...STATES.map((state) => [state, words(state)] as const)]}
        />
      </Field>
      <Field label="Model">
        <TextFilter value={search.model} onCommit={(model) => change({ model })} />
      </Field>
      <Field label="Metadata">
        <TextFilter placeholder="team=search" value={search.metadata} onCommit={(metadata) => change({ metadata })} />
      </Field>
      <Field label="Created from">
        <TimeFilter value={search.since} onCommit={(since) => change({ since })} />
      </Field>
      <Field label="Created before">
        <TimeFilter value={search.until} onCommit={(until) => change({ until })} />
      </Field>
    </form>
  );
}

function NoMatch() {
  const navigate = route.useNavigate();
  return (
    <Empty title="No job matches" action={<Button onClick={() => void navigate({ search: {} })}>Clear the filters</Button>}>
      A model matches by its whole name, and metadata by whole entries. A value with commas stands in quotes: note="a, b".
    </Empty>
  );
}

function NoJobs() {
  return (
    <Empty
      title="No jobs yet"
      action={<Link to="/batches/new" className="button primary">New batch</Link>}
      command="nightmill submit requests.jsonl"
      sdk={`file = client.files.create(file=open("requests.jsonl", "rb"), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
)`}
    >
      A job is work that goes on in the background: a batch, files of a vector store, a fine-tuning, the run of an evaluation.
    </Empty>
  );
}
