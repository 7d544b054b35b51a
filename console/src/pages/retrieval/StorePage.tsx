import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";

import { api, take, type Schema } from "@/api/client";
import { get, POLL, refresh } from "@/api/get";
import { ConfirmButton } from "@/components/Confirm";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Page } from "@/components/Page";
import { Bytes, Quantity } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Tabs } from "@/components/Tabs";
import { Time } from "@/components/Time";

import { tabOf } from "./address";
import { Documents } from "./Documents";
import { Indexes } from "./Indexes";
import { Search } from "./Search";
import { Sources } from "./Sources";

import "./stores.css";

type Store = Schema<"VectorStoreObject">;

const route = getRouteApi("/vector-stores/$storeId");

/** Show a vector store: its documents, a search, its sources and its indexes. */
export default function StorePage() {
  const { storeId } = route.useParams();
  const path = { vector_store_id: storeId };
  const store = useQuery({
    ...get("/v1/vector_stores/{vector_store_id}", { path }),
    refetchInterval: ({ state }) => state.data?.status === "in_progress" && POLL,
  });
  return (
    <Loaded what="the vector store" query={store} page="Vector store">
      {(store) => (
        <Page title={store.name || "Vector store"} badge={<State state={store.status} />} actions={<Deletion store={store} />}>
          <div className="stack">
            <StoreFacts store={store} />
            <Parts storeId={storeId} />
          </div>
        </Page>
      )}
    </Loaded>
  );
}

function Parts({ storeId }: { storeId: string }) {
  const { tab = "documents", q } = route.useSearch();
  const navigate = route.useNavigate();
  const search = (query: string) => void navigate({ search: { tab, q: query }, replace: true });
  return (
    <Tabs
      label="Parts of the vector store"
      value={tab}
      onChange={(id) => void navigate({ search: { tab: tabOf(id), q }, replace: true })}
      tabs={[
        { id: "documents", title: "Documents", content: <Documents storeId={storeId} /> },
        { id: "search", title: "Search", content: <Search storeId={storeId} query={q ?? ""} onQuery={search} /> },
        { id: "sources", title: "Sources", content: <Sources storeId={storeId} /> },
        { id: "indexes", title: "Indexes", content: <Indexes storeId={storeId} /> },
      ]}
    />
  );
}

function StoreFacts({ store }: { store: Store }) {
  const { file_counts: counts } = store;
  return (
    <Card>
      <Facts
        facts={[
          ["Id", <Id key="id" id={store.id} />],
          ["Documents", <Quantity key="total" value={counts.completed} />],
          ["Processing", counts.in_progress > 0 ? <Quantity key="way" value={counts.in_progress} /> : null],
          ["Failed", counts.failed > 0 ? <Quantity key="failed" value={counts.failed} /> : null],
          ["Size", <Bytes key="bytes" value={store.usage_bytes} />],
          ["Embedding model", store.embedding_model && <ObjectLink key="model" id={store.embedding_model} kind="model" />],
          ["Dimensions", store.embedding_dimensions],
          ["Created", <Time key="created" at={store.created_at} />],
          ["Last used", store.last_active_at === null ? null : <Time key="used" at={store.last_active_at} />],
          ["Expires", store.expires_at === null ? "never" : <Time key="expires" at={store.expires_at} />],
        ]}
      />
    </Card>
  );
}

function Deletion({ store }: { store: Store }) {
  const navigate = route.useNavigate();

  async function remove() {
    await take(api.DELETE("/v1/vector_stores/{vector_store_id}", { params: { path: { vector_store_id: store.id } } }));
    await navigate({ to: "/vector-stores" });
    void refresh("/v1/vector_stores");
  }

  return (
    <ConfirmButton label="Delete" title="Delete this vector store?" action="Delete the vector store" onConfirm={remove}>
      <p>Its vectors are deleted, and its sources with the files that they brought. Other files stay.</p>
    </ConfirmButton>
  );
}
