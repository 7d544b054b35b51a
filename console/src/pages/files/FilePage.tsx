import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { useState } from "react";

import { api, ApiError, take, type Schema } from "@/api/client";
import { download } from "@/api/download";
import { get, refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Confirm } from "@/components/Confirm";
import { Failure } from "@/components/Failure";
import { formatBytes, formatName, words } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Loaded } from "@/components/Loaded";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Bytes } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { JobName } from "@/pages/jobs/JobName";
import { kindLabel } from "@/pages/jobs/life";

import { readBeginning } from "./content";
import { MigrationReport } from "./MigrationReport";
import { mayBeReport, readReport } from "./report";
import { PURPOSES, type FileObject } from "./uploads";

import "./files.css";

type Job = Schema<"JobObject">;

const route = getRouteApi("/files/$fileId");
const LABELS: Readonly<Record<string, string>> = Object.fromEntries(PURPOSES);

/** Show a file: its facts, its first lines and the jobs that use it. */
export default function FilePage() {
  const { fileId } = route.useParams();
  const path = { file_id: fileId };
  const file = useQuery(get("/v1/files/{file_id}", { path }));
  return (
    <Loaded what="the file" query={file} page="File">
      {(file) => <Shown file={file} />}
    </Loaded>
  );
}

function Shown({ file }: { file: FileObject }) {
  return (
    <Page title={file.filename} actions={<Actions file={file} />}>
      <Card>
        <Facts
          facts={[
            ["Id", <Id key="id" id={file.id} />],
            ["Purpose", LABELS[file.purpose] ?? words(file.purpose)],
            ["Size", <Bytes key="bytes" value={file.bytes} />],
            ["Uploaded", <Time key="created" at={file.created_at} />],
            ["Expires", file.expires_at === null ? "never" : <Time key="expires" at={file.expires_at} />],
          ]}
        />
      </Card>
      {mayBeReport(file) ? <ReportContent file={file} /> : <Content file={file} />}
      <Jobs fileId={file.id} />
    </Page>
  );
}

function Actions({ file }: { file: FileObject }) {
  const [isAsked, setAsked] = useState(false);
  const save = useMutation({ mutationFn: () => download(`/v1/files/${file.id}/content`, file.filename) });
  return (
    <>
      {save.isError && <Failure title="The file could not be downloaded" error={save.error} />}
      <Button busy={save.isPending} onClick={() => save.mutate()}>
        Download
      </Button>
      <Button tone="plain" onClick={() => setAsked(true)}>
        Delete
      </Button>
      {isAsked && <Deletion file={file} onClose={() => setAsked(false)} />}
    </>
  );
}

/** Ask before a file is deleted. Where fine-tuning holds it, offer to erase it for the models too. */
function Deletion({ file, onClose }: { file: FileObject; onClose: () => void }) {
  const navigate = route.useNavigate();
  const [isInUse, setInUse] = useState(false);
  const [erase, setErase] = useState(false);

  async function remove() {
    try {
      await take(api.DELETE("/v1/files/{file_id}", { params: { path: { file_id: file.id }, query: { erase } } }));
    } catch (error) {
      setInUse(error instanceof ApiError && error.code === "file_in_use");
      throw error;
    }
    await navigate({ to: "/files" });
    void refresh("/v1/files");
  }

  return (
    <Confirm title="Delete this file?" action="Delete the file" open onClose={onClose} onConfirm={remove}>
      <p className="break">
        {formatName(file.filename)} ({formatBytes(file.bytes)}) can no longer be used by new jobs, and leaves every vector store. Jobs that read it now go on.
      </p>
      {isInUse && (
        <label className="row">
          <input type="checkbox" checked={erase} onChange={(event) => setErase(event.target.checked)} />
          Delete it although models were trained on it. They stay, marked as models whose data was erased.
        </label>
      )}
    </Confirm>
  );
}

/** Show a file that is named like the report of a migration: the report, or the first lines where it is none. */
function ReportContent({ file }: { file: FileObject }) {
  const report = useQuery({
    queryKey: ["/v1/files/{file_id}/content", { file_id: file.id, as: "report" }],
    queryFn: ({ signal }) => readReport(file.id, signal),
    staleTime: Infinity,
  });
  return (
    <Loaded what="the report" query={report}>
      {(report) => (report === null ? <Content file={file} /> : <MigrationReport report={report} />)}
    </Loaded>
  );
}

function Content({ file }: { file: FileObject }) {
  const content = useQuery({
    queryKey: ["/v1/files/{file_id}/content", { file_id: file.id }],
    queryFn: ({ signal }) => readBeginning(file.id, file.bytes, signal),
    staleTime: Infinity,
  });
  return (
    <Section title="First lines">
      <Loaded what="the content" query={content}>
        {({ lines, isCut }) => <Lines lines={lines} isCut={isCut} />}
      </Loaded>
    </Section>
  );
}

function Lines({ lines, isCut }: { lines: string[] | null; isCut: boolean }) {
  if (lines === null) return <p className="muted">This file is not text. Download it to read it.</p>;
  if (lines.length === 0) return <p className="muted">This file is empty.</p>;
  return (
    <div className="stack">
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex -- a long text is scrolled by keyboard */}
      <ol className="lines" tabIndex={0} aria-label="First lines of the file">
        {lines.map((line, index) => (
          <li key={index}>{line}</li>
        ))}
      </ol>
      {isCut && <p className="muted small">The file goes on, or has longer lines. Download it to read all of it.</p>}
    </div>
  );
}

const COLUMNS: readonly Column<Job>[] = [
  { id: "id", header: "Job", cell: (job) => <JobName job={job} /> },
  { id: "kind", header: "Kind", cell: (job) => kindLabel(job.kind) },
  { id: "state", header: "State", cell: (job) => <State state={job.state} /> },
  { id: "created", header: "Created", cell: (job) => <Time at={job.created_at} />, sort: (job) => job.created_at },
];

function Jobs({ fileId }: { fileId: string }) {
  const jobs = usePages("/v1/jobs", { query: { file_id: fileId } });
  return (
    <Section title="Jobs" actions={<Link to="/batches/new">New batch</Link>}>
      <Listed what="the jobs" query={jobs} empty={<p className="muted">No job has this file as its input or its output.</p>}>
        <Table label="Jobs" columns={COLUMNS} rows={jobs.rows} rowKey={(job) => job.id} rowLink={(job) => ({ to: "/jobs/$jobId", params: { jobId: job.id } })} />
      </Listed>
    </Section>
  );
}
