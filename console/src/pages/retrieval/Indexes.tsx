import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

import { api, ApiError, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Confirm, ConfirmButton } from "@/components/Confirm";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { Field, TextArea } from "@/components/Field";
import { Form, FormDialog } from "@/components/Form";
import { formatCount, formatShare } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Card, Facts } from "@/components/Page";
import { Bytes } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { AUTO, ChunkingFields, chunkingWords, strategyOf } from "./chunking";
import { EmbeddingFields } from "./models";

type Index = Schema<"IndexObject">;
type Comparison = Schema<"Comparison">;
type Compared = Comparison["data"][number];

const PATH = "/v1/vector_stores/{vector_store_id}/indexes";
const MAX_QUERIES = 100;

/** List the indexes of a store, compare them with the one in use, and switch. */
export function Indexes({ storeId }: { storeId: string }) {
  const [isCreating, setCreating] = useState(false);
  const path = { vector_store_id: storeId };
  const indexes = usePages(PATH, { path }, {
    pollWhile: (index) => index.status === "building",
  });
  return (
    <div className="stack">
      <div className="actions">
        <Button onClick={() => setCreating(true)}>New index</Button>
      </div>
      <p className="muted">
        A second index has another embedding model or other chunks. It is built beside the one in use; compare both, then switch without a pause.
      </p>
      <Listed what="the indexes" query={indexes} empty={null}>
        {indexes.rows.map((index) => (
          <IndexCard key={index.id} index={index} />
        ))}
      </Listed>
      {isCreating && <NewIndex storeId={storeId} onClose={() => setCreating(false)} />}
    </div>
  );
}

function refreshStore(): Promise<void> {
  return refresh(PATH, "/v1/vector_stores/{vector_store_id}");
}

function IndexCard({ index }: { index: Index }) {
  const [dialog, setDialog] = useState<"compare" | "switch" | null>(null);
  const params = { path: { vector_store_id: index.vector_store_id, index_id: index.id } };
  const sync = useMutation({ mutationFn: () => take(api.POST(`${PATH}/{index_id}/sync`, { params })), onSettled: refreshStore });
  const close = () => setDialog(null);

  async function remove() {
    await take(api.DELETE(`${PATH}/{index_id}`, { params }));
    await refreshStore();
  }

  return (
    <Card className="stack">
      <div className="row">
        <strong className="break">{index.embedding_model}</strong>
        <State state={index.status} />
        <code className="muted small break">{index.id}</code>
      </div>
      <Facts
        facts={[
          ["Dimensions", index.embedding_dimensions],
          ["Chunks", chunkingWords(index.chunking_strategy)],
          ["Documents", formatCount(index.file_counts.completed, "document")],
          ["Processing", index.file_counts.in_progress || null],
          ["Failed", index.file_counts.failed || null],
          ["Missing", index.missing || null],
          ["Size", <Bytes key="bytes" value={index.usage_bytes} />],
          ["Created", <Time key="created" at={index.created_at} />],
        ]}
      />
      {sync.isError && <Failure title="The index was not synced" error={sync.error} />}
      {index.status !== "active" && (
        <div className="actions">
          <Button onClick={() => setDialog("compare")}>Compare</Button>
          <Button onClick={() => setDialog("switch")}>Use this index</Button>
          {index.missing > 0 && index.status !== "building" && (
            <Button busy={sync.isPending} onClick={() => sync.mutate()}>
              Bring in what is missing
            </Button>
          )}
          <ConfirmButton label="Delete" title="Delete this index?" action="Delete the index" onConfirm={remove}>
            <p>Its vectors and texts are removed. The documents stay in the store.</p>
          </ConfirmButton>
        </div>
      )}
      {dialog === "switch" && <Switch index={index} onClose={close} />}
      <Dialog title="Compare with the index in use" open={dialog === "compare"} onClose={close} className="wide-dialog">
        <Compare index={index} />
      </Dialog>
    </Card>
  );
}

/** Ask before searches use another index. Where it lacks documents, offer to switch all the same. */
function Switch({ index, onClose }: { index: Index; onClose: () => void }) {
  const [isIncomplete, setIncomplete] = useState(false);
  const [allowMissing, setAllowMissing] = useState(false);
  const params = { path: { vector_store_id: index.vector_store_id, index_id: index.id } };

  async function use() {
    try {
      await take(api.POST(`${PATH}/{index_id}/switch`, { params, body: { allow_missing: allowMissing } }));
    } catch (error) {
      setIncomplete(error instanceof ApiError && error.code === "index_incomplete");
      throw error;
    }
    await refreshStore();
  }

  return (
    <Confirm title="Use this index?" action="Use the index" tone="primary" open onClose={onClose} onConfirm={use}>
      <p>Searches that begin from now on use it. You can switch back at any time.</p>
      {isIncomplete && (
        <label className="row">
          <input type="checkbox" checked={allowMissing} onChange={(event) => setAllowMissing(event.target.checked)} />
          Switch although {formatCount(index.missing, "document")} will not be found
        </label>
      )}
    </Confirm>
  );
}

const COLUMNS: readonly Column<Compared>[] = [
  { id: "query", header: "Query", cell: (row) => <span className="break">{row.query}</span>, sort: (row) => row.query },
  { id: "overlap", header: "Found by both", cell: (row) => formatShare(row.overlap), sort: (row) => row.overlap, align: "end" },
  {
    id: "correlation",
    header: "Rank correlation",
    cell: (row) => row.rank_correlation?.toFixed(2) ?? "–",
    sort: (row) => row.rank_correlation,
    align: "end",
  },
  { id: "active", header: "In use", cell: (row) => milliseconds(row.active.latency_ms), sort: (row) => row.active.latency_ms, align: "end" },
  { id: "candidate", header: "This index", cell: (row) => milliseconds(row.candidate.latency_ms), sort: (row) => row.candidate.latency_ms, align: "end" },
];

function Compare({ index }: { index: Index }) {
  const [text, setText] = useState("");
  const [report, setReport] = useState<Comparison | null>(null);

  async function compare() {
    const path = { vector_store_id: index.vector_store_id, index_id: index.id };
    const lines = text.split("\n").map((line) => line.trim());
    const body = { queries: lines.filter(Boolean).slice(0, MAX_QUERIES), max_num_results: 10 };
    setReport(await take(api.POST(`${PATH}/{index_id}/compare`, { params: { path }, body })));
  }

  return (
    <div className="stack">
      <Form action="Compare" failure="The indexes could not be compared" onSubmit={compare}>
        <Field label="Queries" hint={`One a line, at most ${MAX_QUERIES}. Both indexes are asked each of them.`}>
          <TextArea required value={text} onChange={(event) => setText(event.target.value)} />
        </Field>
      </Form>
      {report && <Report report={report} />}
    </div>
  );
}

function Report({ report }: { report: Comparison }) {
  const { summary } = report;
  return (
    <>
      <Facts
        facts={[
          ["Found by both", formatShare(summary.overlap)],
          ["Rank correlation", summary.rank_correlation?.toFixed(2)],
          ["Median time, in use", milliseconds(summary.active.latency_ms)],
          ["Median time, this index", milliseconds(summary.candidate.latency_ms)],
        ]}
      />
      <Table label="Queries" columns={COLUMNS} rows={report.data} rowKey={(row) => row.query} />
    </>
  );
}

function milliseconds(value: number): string {
  return `${Math.round(value)} ms`;
}

function NewIndex({ storeId, onClose }: { storeId: string; onClose: () => void }) {
  const [model, setModel] = useState("");
  const [dimensions, setDimensions] = useState("");
  const [chunking, setChunking] = useState(AUTO);

  async function create() {
    const body = {
      embedding_model: model || undefined,
      embedding_dimensions: dimensions === "" ? undefined : Number(dimensions),
      chunking_strategy: strategyOf(chunking),
    };
    await take(api.POST(PATH, { params: { path: { vector_store_id: storeId } }, body }));
    await refreshStore();
  }

  return (
    <FormDialog title="New index" action="Build the index" failure="The index could not be created" onSubmit={create} onClose={onClose}>
      <EmbeddingFields model={model} onModel={setModel} dimensions={dimensions} onDimensions={setDimensions} none="the model in use" />
      <ChunkingFields form={chunking} onChange={setChunking} />
    </FormDialog>
  );
}
