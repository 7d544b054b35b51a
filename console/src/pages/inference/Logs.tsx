import { useMutation } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import { useState, type ComponentProps } from "react";

import { api, take } from "@/api/client";
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
import { Tabs } from "@/components/Tabs";
import { Time } from "@/components/Time";
import { preview } from "@/pages/evals/evals";
import { sendFile } from "@/pages/files/uploads";

import { logsSearch } from "./address";
import { itemsOf, loggedChat, loggedResponse, questionOf, type Exchange, type Logged } from "./logs";

const route = getRouteApi("/logs");
const PAGE = 50;
/** Messages of an answer that are read; the question is the last of them. */
const MESSAGES = 100;

const COLUMNS: readonly Column<Logged>[] = [
  { id: "answer", header: "Answer", cell: ({ answer }) => <span className="break">{preview(answer) || "–"}</span> },
  { id: "model", header: "Model", cell: ({ model }) => <span className="break">{model}</span>, sort: ({ model }) => model, wide: true },
  { id: "id", header: "ID", cell: ({ id }) => <code className="small muted break">{id}</code>, wide: true },
  { id: "created", header: "Created", cell: ({ created }) => <Time at={created} />, sort: ({ created }) => created, align: "end" },
];

/** List the chats and responses that were stored, and save those that are selected as items of an eval. */
export default function Logs() {
  const { model, tab = "chats" } = route.useSearch();
  const navigate = route.useNavigate();
  return (
    <Page title="Logs" description="Chats and responses that were stored: those with store: true, and responses without store: false.">
      <div className="filters">
        <Field label="Model">
          <TextFilter value={model} onCommit={(chosen) => void navigate({ search: (search) => ({ ...search, model: chosen }), replace: true })} />
        </Field>
      </div>
      <Tabs
        label="API"
        value={tab}
        onChange={(chosen) => void navigate({ search: { ...logsSearch({ tab: chosen }), model }, replace: true })}
        tabs={[
          { id: "chats", title: "Chats", content: <Chats model={model} /> },
          { id: "responses", title: "Responses", content: <Responses model={model} /> },
        ]}
      />
    </Page>
  );
}

function Chats({ model }: { model: string | undefined }) {
  const query = usePages("/v1/chat/completions", { query: { model, order: "desc", limit: PAGE } });
  return <Answers noun="chat" query={query} rows={query.rows.map(loggedChat)} read={questionOfChat} empty={<NoChats />} />;
}

function Responses({ model }: { model: string | undefined }) {
  const query = usePages("/v1/responses", { query: { model, limit: PAGE } });
  return <Answers noun="response" query={query} rows={query.rows.map(loggedResponse)} read={questionOfResponse} empty={<NoResponses />} />;
}

interface AnswersProps extends Pick<ComponentProps<typeof Listed>, "query" | "empty"> {
  noun: string;
  rows: readonly Logged[];
  /** Read the question of an answer. */
  read: (id: string) => Promise<string>;
}

function Answers({ noun, query, rows, read, empty }: AnswersProps) {
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  return (
    <div className="stack">
      <Save noun={noun} answers={rows.filter(({ id }) => selected.has(id))} read={read} />
      <Listed what={`the ${noun}s`} query={query} empty={empty}>
        <Table label={`Stored ${noun}s`} columns={COLUMNS} rows={rows} rowKey={({ id }) => id} selected={selected} onSelect={setSelected} />
      </Listed>
    </div>
  );
}

/** Offer to save the selected answers as a file of items: a question and its answer each. */
function Save({ noun, answers, read }: { noun: string; answers: readonly Logged[]; read: (id: string) => Promise<string> }) {
  const save = useMutation({ mutationFn: () => saveItems(answers, read) });
  return (
    <div className="stack">
      {answers.length > 0 && (
        <div className="row selection">
          <span>{formatCount(answers.length, noun)} selected</span>
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

/** Read the questions of answers, and upload them together. Raises: ApiError. */
async function saveItems(answers: readonly Logged[], read: (id: string) => Promise<string>): Promise<{ file: string; count: number }> {
  const exchanges: Exchange[] = [];
  for (const { id, answer } of answers) exchanges.push({ question: await read(id), answer });
  const content = new File([itemsOf(exchanges)], "logs.jsonl", { type: "application/jsonl" });
  const file = await sendFile(content, "evals", new AbortController().signal, () => undefined);
  return { file: file.id, count: exchanges.length };
}

async function questionOfChat(id: string): Promise<string> {
  const params = { path: { completion_id: id }, query: { order: "desc", limit: MESSAGES } } as const;
  const page = await take(api.GET("/v1/chat/completions/{completion_id}/messages", { params }));
  return questionOf(page.data.toReversed());
}

async function questionOfResponse(id: string): Promise<string> {
  const params = { path: { response_id: id }, query: { order: "desc", limit: MESSAGES } } as const;
  const page = await take(api.GET("/v1/responses/{response_id}/input_items", { params }));
  return questionOf(page.data.toReversed());
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

function NoResponses() {
  return (
    <Empty title="No response is stored" sdk={'client.responses.create(model="smollm2-135m-instruct", input="Hello")'}>
      A response is stored unless it is sent with store: false. Its input can then become an item of an eval.
    </Empty>
  );
}
