import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Field, Input } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Bytes, Quantity } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { AUTO, ChunkingFields, strategyOf } from "./chunking";
import { EmbeddingFields } from "./models";

type Store = Schema<"VectorStoreObject">;

const route = getRouteApi("/vector-stores");

const COLUMNS: readonly Column<Store>[] = [
  { id: "name", header: "Name", cell: (store) => <span className="break">{store.name || store.id}</span>, sort: (store) => store.name },
  { id: "status", header: "State", cell: (store) => <State state={store.status} /> },
  { id: "files", header: "Documents", cell: (store) => <Quantity value={store.file_counts.completed} />, sort: (store) => store.file_counts.completed, align: "end" },
  {
    id: "failed",
    header: "Failed",
    cell: (store) => <span className={store.file_counts.failed > 0 ? "bad" : "muted"}>{store.file_counts.failed}</span>,
    sort: (store) => store.file_counts.failed,
    align: "end",
  },
  { id: "bytes", header: "Size", cell: (store) => <Bytes value={store.usage_bytes} />, sort: (store) => store.usage_bytes, align: "end", wide: true },
  { id: "model", header: "Embedding model", cell: (store) => store.embedding_model, sort: (store) => store.embedding_model, wide: true },
  { id: "created", header: "Created", cell: (store) => <Time at={store.created_at} />, sort: (store) => store.created_at, wide: true },
];

/** List the project's vector stores, and create new ones. */
export default function Stores() {
  const [isCreating, setCreating] = useState(false);
  const stores = usePages("/v1/vector_stores", { query: { limit: 50 } });
  const create = (
    <Button tone="primary" onClick={() => setCreating(true)}>
      New vector store
    </Button>
  );
  return (
    <Page title="Vector stores" description="Documents that are searched by meaning and by words, and that models answer from." actions={create}>
      <Listed what="the vector stores" query={stores} empty={<NoStores />}>
        <Table
          label="Vector stores"
          columns={COLUMNS}
          rows={stores.rows}
          rowKey={(store) => store.id}
          rowLink={(store) => ({ to: "/vector-stores/$storeId", params: { storeId: store.id } })}
        />
      </Listed>
      {isCreating && <NewStore onClose={() => setCreating(false)} />}
    </Page>
  );
}

function NewStore({ onClose }: { onClose: () => void }) {
  const navigate = route.useNavigate();
  const [name, setName] = useState("");
  const [model, setModel] = useState("");
  const [dimensions, setDimensions] = useState("");
  const [days, setDays] = useState("");
  const [chunking, setChunking] = useState(AUTO);

  async function create() {
    const body = {
      name,
      embedding_model: model || undefined,
      embedding_dimensions: dimensions === "" ? undefined : Number(dimensions),
      expires_after: days === "" ? undefined : { anchor: "last_active_at", days: Number(days) } as const,
      chunking_strategy: strategyOf(chunking),
    };
    const store = await take(api.POST("/v1/vector_stores", { body }));
    await refresh("/v1/vector_stores");
    await navigate({ to: "/vector-stores/$storeId", params: { storeId: store.id } });
  }

  return (
    <FormDialog title="New vector store" action="Create the vector store" failure="The vector store could not be created" onSubmit={create} onClose={onClose}>
      <Field label="Name">
        <Input required maxLength={256} value={name} onChange={(event) => setName(event.target.value)} />
      </Field>
      <EmbeddingFields model={model} onModel={setModel} dimensions={dimensions} onDimensions={setDimensions} none="the deployment's default" />
      <ChunkingFields form={chunking} onChange={setChunking} />
      <Field label="Expires after" hint="Days after the last use, 1 to 365. Empty: never.">
        <Input type="number" min={1} max={365} value={days} onChange={(event) => setDays(event.target.value)} />
      </Field>
    </FormDialog>
  );
}

function NoStores() {
  return (
    <Empty
      title="No vector stores yet"
      command="nightmill stores create handbook"
      sdk='store = client.vector_stores.create(name="handbook")'
    >
      Create a vector store, then drop documents into it. PDF, Word, HTML, Markdown, source code and other kinds of text are read.
    </Empty>
  );
}
