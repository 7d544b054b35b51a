import { getRouteApi, Link } from "@tanstack/react-router";
import { useState } from "react";

import { usePages } from "@/api/get";
import { KINDS } from "@/api/kinds";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Field, Select } from "@/components/Field";
import { TextFilter, TimeFilter } from "@/components/Filters";
import { formatCount, words } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { Quantity } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { cancelAll, retryAll } from "./bulk";
import { JobName } from "./JobName";
import { cancellable, kindLabel, retryable, STATES, type JobObject } from "./life";
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
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const isFiltered = Object.values(search).some((value) => value !== undefined);
  return (
    <Page title="Jobs" actions={<Link to="/batches/new" className="button primary">New batch</Link>}>
      <Filters search={search} />
      <Selection jobs={jobs.rows.filter((job) => selected.has(job.id))} onDone={() => setSelected(new Set())} />
      <Listed what="the jobs" query={jobs} empty={isFiltered ? <NoMatch /> : <NoJobs />}>
        <Table
          label="Jobs"
          columns={COLUMNS}
          rows={jobs.rows}
          rowKey={(job) => job.id}
          rowLink={(job) => ({ to: "/jobs/$jobId", params: { jobId: job.id } })}
          selected={selected}
          onSelect={setSelected}
        />
      </Listed>
    </Page>
  );
}

/** Offer what can be done with the selected jobs, where any are. */
function Selection({ jobs, onDone }: { jobs: readonly JobObject[]; onDone: () => void }) {
  if (jobs.length === 0) return null;
  const live = cancellable(jobs);
  const failed = retryable(jobs);
  return (
    <div className="row selection" role="group" aria-label="Selected jobs">
      <span>{formatCount(jobs.length, "job")} selected</span>
      {live.length > 0 && (
        <ConfirmButton
          label={`Cancel ${formatCount(live.length, "job")}`}
          title={`Cancel ${formatCount(live.length, "job")}?`}
          action="Cancel them"
          onConfirm={() => cancelAll(live).then(onDone)}
        >
          <p>Lines that are finished keep their results. The others are not run.</p>
        </ConfirmButton>
      )}
      {failed.length > 0 && (
        <ConfirmButton
          label={`Retry ${formatCount(failed.length, "job")}`}
          title={`Retry ${formatCount(failed.length, "job")}?`}
          action="Retry them"
          tone="primary"
          onConfirm={() => retryAll(failed).then(onDone)}
        >
          <p>The lines that failed or are missing are run again, those of each job as a new one.</p>
        </ConfirmButton>
      )}
      <Button tone="plain" onClick={onDone}>
        Clear the selection
      </Button>
    </div>
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
        <Select
          value={search.kind ?? ""}
          onChange={(kind) => change({ kind: kind || undefined })}
          options={[["", "All"], ...KINDS.map(({ name, label }) => [name, label] as const)]}
        />
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
