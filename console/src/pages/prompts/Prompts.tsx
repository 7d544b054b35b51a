import { getRouteApi, Link } from "@tanstack/react-router";

import { usePages } from "@/api/get";
import { Empty } from "@/components/Empty";
import { Field, Select } from "@/components/Field";
import { TextFilter } from "@/components/Filters";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import type { Prompt } from "./prompts";

const route = getRouteApi("/prompts");
const PAGE = 50;

const COLUMNS: readonly Column<Prompt>[] = [
  { id: "name", header: "Prompt", cell: (prompt) => <span className="break">{prompt.name ?? prompt.id}</span>, sort: (prompt) => prompt.name },
  { id: "default", header: "Default version", cell: (prompt) => `${prompt.default_version} of ${prompt.latest_version}` },
  { id: "labels", header: "Labels", cell: (prompt) => <Labels prompt={prompt} /> },
  { id: "model", header: "Model", cell: (prompt) => <span className="break">{prompt.version.model ?? "–"}</span>, sort: (prompt) => prompt.version.model, wide: true },
  { id: "id", header: "Id", cell: (prompt) => <code>{prompt.id}</code>, wide: true },
  { id: "updated", header: "Version made", cell: (prompt) => <Time at={prompt.version.created_at} />, sort: (prompt) => prompt.version.created_at, wide: true },
];

function Labels({ prompt }: { prompt: Prompt }) {
  const labels = Object.entries(prompt.labels);
  return <span className="break">{labels.length > 0 ? labels.map(([name, version]) => `${name}: ${version}`).join(", ") : "–"}</span>;
}

/** List the project's prompts, the newest first. */
export default function Prompts() {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const prompts = usePages("/v1/prompts", { query: { limit: PAGE, order: "desc", name: search.name, archived: search.archived } });
  const isFiltered = search.name !== undefined || search.archived !== undefined;
  return (
    <Page title="Prompts" description="Instructions and messages that requests name by an id, in versions that never change." actions={<NewLink />}>
      <div className="filters">
        <Field label="Name">
          <TextFilter value={search.name} onCommit={(name) => void navigate({ search: { ...search, name }, replace: true })} />
        </Field>
        <Field label="Show">
          <Select
            value={search.archived ? "archived" : ""}
            options={[
              ["", "In use"],
              ["archived", "Archived"],
            ]}
            onChange={(chosen) => void navigate({ search: { ...search, archived: chosen === "" ? undefined : true }, replace: true })}
          />
        </Field>
      </div>
      <Listed what="the prompts" query={prompts} empty={isFiltered ? <Empty title="No such prompts">Choose other filters.</Empty> : <NoPrompts />}>
        <Table
          label="Prompts"
          columns={COLUMNS}
          rows={prompts.rows}
          rowKey={(prompt) => prompt.id}
          rowLink={(prompt) => ({ to: "/prompts/$promptId", params: { promptId: prompt.id } })}
        />
      </Listed>
    </Page>
  );
}

function NewLink() {
  return (
    <Link to="/prompts/new" className="button primary">
      New prompt
    </Link>
  );
}

function NoPrompts() {
  return (
    <Empty title="No prompts yet" action={<NewLink />} sdk={'client.responses.create(\n    prompt={"id": "pmpt_…", "variables": {"customer": "Ada"}},\n)'}>
      A prompt has instructions, messages, a model and its parameters. {"{{customer}}"} in them stands for a value that each request gives. A prompt of
      OpenAI keeps its id when it is imported.
    </Empty>
  );
}
