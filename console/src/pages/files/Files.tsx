import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { usePages } from "@/api/get";
import { DropZone } from "@/components/DropZone";
import { Empty } from "@/components/Empty";
import { Field, Select } from "@/components/Field";
import { formatName, words } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Bytes } from "@/components/Quantity";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { UploadList } from "./UploadList";
import { PURPOSES, upload, type FileObject, type Purpose } from "./uploads";

import "./files.css";

const route = getRouteApi("/files");
const PAGE = 100;
const LABELS: Readonly<Record<string, string>> = Object.fromEntries(PURPOSES);

const COLUMNS: readonly Column<FileObject>[] = [
  { id: "filename", header: "Name", cell: (file) => <span className="break">{formatName(file.filename)}</span>, sort: (file) => file.filename },
  { id: "purpose", header: "Purpose", cell: (file) => LABELS[file.purpose] ?? words(file.purpose), sort: (file) => file.purpose },
  { id: "bytes", header: "Size", cell: (file) => <Bytes value={file.bytes} />, sort: (file) => file.bytes, align: "end" },
  { id: "created", header: "Uploaded", cell: (file) => <Time at={file.created_at} />, sort: (file) => file.created_at },
  { id: "expires", header: "Expires", cell: (file) => (file.expires_at === null ? "never" : <Time at={file.expires_at} />), sort: (file) => file.expires_at, wide: true },
  { id: "id", header: "Id", cell: (file) => <code>{file.id}</code>, wide: true },
];

/** List the project's files, and take new ones. */
export default function Files() {
  const { purpose } = route.useSearch();
  const navigate = route.useNavigate();
  const files = usePages("/v1/files", { query: { purpose, limit: PAGE } });
  return (
    <Page title="Files" description="Inputs of jobs, their outputs, documents and training data.">
      <div className="stack">
        <NewFiles />
        <UploadList />
        <div className="filters">
          <Field label="Purpose">
            <Select
              value={purpose ?? ""}
              onChange={(chosen) => void navigate({ search: chosen === "" ? {} : { purpose: chosen }, replace: true })}
              options={[["", "All"], ...PURPOSES, ["batch_output", "Output of batches"]]}
            />
          </Field>
        </div>
        <Listed what="the files" query={files} empty={<NoFiles filtered={purpose !== undefined} />}>
          <Table
            label="Files"
            columns={COLUMNS}
            rows={files.rows}
            rowKey={(file) => file.id}
            rowLink={(file) => ({ to: "/files/$fileId", params: { fileId: file.id } })}
          />
        </Listed>
      </div>
    </Page>
  );
}

function NewFiles() {
  const [purpose, setPurpose] = useState<Purpose>("batch");
  return (
    <div className="new-files">
      <DropZone multiple label="Drop files here" hint="Files above 16 MB are sent in parts." onFiles={(files) => void upload(files, purpose)} />
      <Field label="Purpose of new files">
        <Select value={purpose} onChange={(chosen) => setPurpose(chosen as Purpose)} options={PURPOSES} />
      </Field>
    </div>
  );
}

function NoFiles({ filtered }: { filtered: boolean }) {
  if (filtered) return <Empty title="No files with this purpose">Choose another purpose, or upload a file above.</Empty>;
  return (
    <Empty
      title="No files yet"
      command="nightmill run input.jsonl"
      sdk={'with open("input.jsonl", "rb") as file:\n    client.files.create(file=file, purpose="batch")'}
    >
      Drop a file above. The command uploads a file, runs its lines as a batch and downloads the results.
    </Empty>
  );
}
