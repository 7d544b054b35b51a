import { useMutation } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";

import { api, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { ConfirmButton } from "@/components/Confirm";
import { DropZone } from "@/components/DropZone";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { Field, Select } from "@/components/Field";
import { formatName, words } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Bytes } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { UploadList } from "@/pages/files/UploadList";
import { upload } from "@/pages/files/uploads";

import type { DocumentState } from "./address";
import { chunkingWords } from "./chunking";

type StoreFile = Schema<"VectorStoreFileObject">;

const route = getRouteApi("/vector-stores/$storeId");

const FILTERS = [
  ["", "All"],
  ["completed", "Completed"],
  ["in_progress", "In progress"],
  ["failed", "Failed"],
  ["cancelled", "Cancelled"],
] as const;

/** List the documents of a store with their states and the reasons of failures, and take new ones. */
export function Documents({ storeId }: { storeId: string }) {
  const { state } = route.useSearch();
  const navigate = route.useNavigate();
  const path = { vector_store_id: storeId };
  const query = { filter: state, limit: 50 };
  const files = usePages("/v1/vector_stores/{vector_store_id}/files", { path, query }, { pollWhile: (file) => file.status === "in_progress" });
  const add = useMutation({ mutationFn: (chosen: File[]) => attach(storeId, chosen), onSettled: refreshStore });

  return (
    <div className="stack">
      <DropZone multiple label="Drop documents here" hint="PDF, Word, HTML, Markdown, source code and other kinds of text." onFiles={(chosen) => add.mutate(chosen)} />
      <UploadList />
      {add.isError && <Failure title="The documents could not be added" error={add.error} />}
      <div className="filters">
        <Field label="State">
          <Select
            value={state ?? ""}
            options={FILTERS}
            onChange={(chosen) => void navigate({ search: { state: chosen === "" ? undefined : (chosen as DocumentState) }, replace: true })}
          />
        </Field>
      </div>
      <Listed what="the documents" query={files} empty={<NoDocuments filtered={state !== undefined} storeId={storeId} />}>
        <Table label="Documents" columns={columnsOf(storeId)} rows={files.rows} rowKey={(file) => file.id} />
      </Listed>
    </div>
  );
}

/** Upload documents, and bring those that have arrived into the store by one job. */
async function attach(storeId: string, chosen: readonly File[]): Promise<void> {
  const arrived = await upload(chosen, "assistants");
  if (arrived.length === 0) return;
  const params = { path: { vector_store_id: storeId } };
  await take(api.POST("/v1/vector_stores/{vector_store_id}/file_batches", { params, body: { file_ids: arrived.map(({ id }) => id) } }));
}

function refreshStore(): Promise<void> {
  return refresh("/v1/vector_stores/{vector_store_id}/files", "/v1/vector_stores/{vector_store_id}");
}

function columnsOf(storeId: string): readonly Column<StoreFile>[] {
  return [
    {
      id: "filename",
      header: "Document",
      cell: (file) => (
        <Link to="/files/$fileId" params={{ fileId: file.id }} className="document">
          {formatName(file.filename)}
        </Link>
      ),
      sort: (file) => file.filename,
    },
    { id: "status", header: "State", cell: (file) => <StoreFileState file={file} />, sort: (file) => file.status },
    { id: "bytes", header: "Size", cell: (file) => <Bytes value={file.usage_bytes} />, sort: (file) => file.usage_bytes, align: "end", wide: true },
    { id: "chunks", header: "Chunks", cell: (file) => chunkingWords(file.chunking_strategy), wide: true },
    { id: "created", header: "Added", cell: (file) => <Time at={file.created_at} />, sort: (file) => file.created_at, wide: true },
    {
      id: "remove",
      header: "",
      cell: (file) => (
        <Removal storeId={storeId} file={file} />
      ),
      align: "end",
    },
  ];
}

/** Render the state of a document, with the reason of a failure. */
function StoreFileState({ file }: { file: StoreFile }) {
  return (
    <div className="stack tight">
      <span>
        <State state={file.status} /> {file.stage && <span className="muted small">{words(file.stage)}</span>}
      </span>
      {file.last_error && (
        <span className="small break">
          {file.last_error.message} <span className="muted">({file.last_error.code})</span>
        </span>
      )}
    </div>
  );
}

function Removal({ storeId, file }: { storeId: string; file: StoreFile }) {
  async function remove() {
    const path = { vector_store_id: storeId, file_id: file.id };
    await take(api.DELETE("/v1/vector_stores/{vector_store_id}/files/{file_id}", { params: { path } }));
    await refreshStore();
  }
  return (
    <ConfirmButton small label="Remove" name={`Remove ${formatName(file.filename)}`} title="Remove this document?" action="Remove the document" onConfirm={remove}>
      <p className="break">Searches no longer find {formatName(file.filename)}. The file itself stays among the files of the project.</p>
    </ConfirmButton>
  );
}

function NoDocuments({ filtered, storeId }: { filtered: boolean; storeId: string }) {
  if (filtered) return <Empty title="No documents in this state">Choose another state above.</Empty>;
  return (
    <Empty
      title="No documents yet"
      command={`nightmill stores add ${storeId} handbook.pdf`}
      sdk={`with open("handbook.pdf", "rb") as file:
    client.vector_stores.file_batches.upload_and_poll(
        "${storeId}", files=[file]
    )`}
    >
      Drop documents above, or keep a folder, an S3 prefix or URLs in step by a source.
    </Empty>
  );
}
