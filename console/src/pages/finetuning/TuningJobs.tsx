import { Link } from "@tanstack/react-router";

import { usePages } from "@/api/get";
import { Empty } from "@/components/Empty";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Quantity } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { JobName } from "@/pages/jobs/JobName";

import { methodOf, nameOf, type TuningJob } from "./tuning";

const COLUMNS: readonly Column<TuningJob>[] = [
  {
    id: "id",
    header: "Job",
    cell: (job) => <JobName job={{ id: job.id, name: nameOf(job) === job.id ? null : nameOf(job) }} />,
    sort: nameOf,
  },
  { id: "status", header: "State", cell: (job) => <State state={job.status} />, sort: (job) => job.status },
  { id: "base", header: "Trained model", cell: (job) => <span className="break">{job.model}</span>, sort: (job) => job.model },
  { id: "method", header: "Method", cell: (job) => (job.dry_run ? "measurement" : methodOf(job)), sort: methodOf, wide: true },
  {
    id: "result",
    header: "Result",
    cell: (job) => <span className="break">{job.fine_tuned_model ?? "–"}</span>,
    sort: (job) => job.fine_tuned_model,
    wide: true,
  },
  {
    id: "tokens",
    header: "Tokens",
    cell: (job) => (job.trained_tokens === null ? "–" : <Quantity compact value={job.trained_tokens} unit="token" />),
    sort: (job) => job.trained_tokens,
    align: "end",
    wide: true,
  },
  { id: "created", header: "Created", cell: (job) => <Time at={job.created_at} />, sort: (job) => job.created_at },
];
const POLL = 5_000;
const PAGE = 50;

/** List the project's fine-tuning jobs. */
export default function TuningJobs() {
  const jobs = usePages("/v1/fine_tuning/jobs", { query: { limit: PAGE } }, { refetchInterval: POLL });
  return (
    <Page
      title="Fine-tuning"
      description="Train a model of this deployment on your own examples."
      actions={
        <Link to="/fine-tuning/new" className="button primary">
          New fine-tuning job
        </Link>
      }
    >
      <Listed what="the fine-tuning jobs" query={jobs} empty={<NoJobs />}>
        <Table
          label="Fine-tuning jobs"
          columns={COLUMNS}
          rows={jobs.rows}
          rowKey={(job) => job.id}
          rowLink={(job) => ({ to: "/fine-tuning/$jobId", params: { jobId: job.id } })}
        />
      </Listed>
    </Page>
  );
}

function NoJobs() {
  return (
    <Empty
      title="No fine-tuning jobs yet"
      action={
        <Link to="/fine-tuning/new" className="button primary">
          New fine-tuning job
        </Link>
      }
      command={"nightmill finetune submit examples.jsonl \\\n  --model smollm2-135m-instruct --suffix support"}
      sdk={
        'examples = open("examples.jsonl", "rb")\n' +
        'file = client.files.create(file=examples, purpose="fine-tune")\n' +
        'client.fine_tuning.jobs.create(\n    model="smollm2-135m-instruct", training_file=file.id\n)'
      }
    >
      A job trains a model on a file of at least ten examples, one JSON object a line, and the result gets a name of its own.
    </Empty>
  );
}
