import { useMutation } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { Field } from "@/components/Field";
import { TextFilter } from "@/components/Filters";
import { formatCount } from "@/components/format";
import { Listed } from "@/components/Listed";
import { ObjectLink } from "@/components/ObjectLink";
import { Page } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { preview } from "@/pages/evals/evals";
import { sendFile } from "@/pages/files/uploads";

import { answerOf, itemsOf, questionOf, type Exchange, type StoredChat } from "./logs";

const route = getRouteApi("/logs");
const PAGE = 50;
/** Messages of a chat that are read; the question is the last of them. */
const MESSAGES = 100;

const COLUMNS: readonly Column<StoredChat>[] = [
  { id: "answer", header: "Answer", cell: (chat) => <span className="break">{preview(answerOf(chat)) || "–"}</span> },
  { id: "model", header: "Model", cell: (chat) => <span className="break">{String(chat.model)}</span>, sort: (chat) => String(chat.model), wide: true },
  { id: "id", header: "Chat", cell: (chat) => <code className="small muted break">{chat.id}</code>, wide: true },
  { id: "created", header: "Created", cell: (chat) => <Time at={Number(chat.created)} />, sort: (chat) => Number(chat.created), align: "end" },
];

/** List the chats that were stored, and save those that are selected as items of an eval. */
export default function Logs() {
  const { model } = route.useSearch();
  const navigate = route.useNavigate();
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const chats = usePages("/v1/chat/completions", { query: { model, order: "desc", limit: PAGE } });
  return (
    <Page title="Logs" description="Chats that were sent with store: true.">
      <div className="filters">
        <Field label="Model">
          <TextFilter value={model} onCommit={(chosen) => void navigate({ search: { model: chosen }, replace: true })} />
        </Field>
      </div>
      <Save chats={chats.rows.filter((chat) => selected.has(chat.id))} />
      <Listed what="the chats" query={chats} empty={<NoChats />}>
        <Table label="Chats" columns={COLUMNS} rows={chats.rows} rowKey={(chat) => chat.id} selected={selected} onSelect={setSelected} />
      </Listed>
    </Page>
  );
}

/** Offer to save the selected chats as a file of items: a question and its answer each. */
function Save({ chats }: { chats: readonly StoredChat[] }) {
  const save = useMutation({ mutationFn: () => saveItems(chats) });
  return (
    <div className="stack">
      {chats.length > 0 && (
        <div className="row selection">
          <span>{formatCount(chats.length, "chat")} selected</span>
          <Button busy={save.isPending} onClick={() => save.mutate()}>
            Save as eval items
          </Button>
        </div>
      )}
      {save.isError && <Failure title="The items were not saved" error={save.error} />}
      {save.data && (
        <p role="status">
          {formatCount(save.data.count, "item")} saved in <ObjectLink id={save.data.file} />.{" "}
          <Link to="/evals">Open the evaluations</Link> to use them.
        </p>
      )}
    </div>
  );
}

/** Read the questions of chats, and upload them with their answers. Raises: ApiError. */
async function saveItems(chats: readonly StoredChat[]): Promise<{ file: string; count: number }> {
  const exchanges: Exchange[] = [];
  for (const chat of chats) exchanges.push({ question: questionOf(await messagesOf(chat.id)), answer: answerOf(chat) });
  const content = new File([itemsOf(exchanges)], "logs.jsonl", { type: "application/jsonl" });
  const file = await sendFile(content, "evals", new AbortController().signal, () => undefined);
  return { file: file.id, count: exchanges.length };
}

async function messagesOf(id: string): Promise<readonly Schema<"StoredMessage">[]> {
  const params = { path: { completion_id: id }, query: { order: "desc", limit: MESSAGES } } as const;
  const page = await take(api.GET("/v1/chat/completions/{completion_id}/messages", { params }));
  return [...page.data].reverse();
}

function NoChats() {
  return (
    <Empty
      title="No chat is stored"
      sdk={'client.chat.completions.create(\n    model="smollm2-135m-instruct",\n    messages=[{"role": "user", "content": "Hello"}],\n    store=True,\n)'}
    >
      A chat is stored that is sent with store: true. Its messages can then become items of an eval.
    </Empty>
  );
}
