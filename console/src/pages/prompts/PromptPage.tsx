import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";
import type { ReactNode } from "react";

import { api, take } from "@/api/client";
import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { Failure } from "@/components/Failure";
import { Field, Select } from "@/components/Field";
import { Loaded } from "@/components/Loaded";
import { Card, Facts, Page } from "@/components/Page";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Tabs } from "@/components/Tabs";
import { Time } from "@/components/Time";

import { promptSearch, type PromptSearch } from "./address";
import { Comparison } from "./Comparison";
import { Content } from "./Content";
import { describeVersion, type Prompt, type Version } from "./prompts";
import { refreshPrompts, useVersion, useVersions } from "./queries";
import { TryOut } from "./TryOut";
import { Use } from "./Use";
import { Versions } from "./Versions";

import "./prompts.css";

const route = getRouteApi("/prompts/$promptId");

/** Show a prompt: one of its versions, all versions, what differs between two, a try, and programs that use it. */
export default function PromptPage() {
  const { promptId } = route.useParams();
  const prompt = useQuery(get("/v1/prompts/{prompt_id}", { path: { prompt_id: promptId } }));
  return (
    <Loaded what="the prompt" query={prompt} page="Prompt">
      {(prompt) => <Shown prompt={prompt} />}
    </Loaded>
  );
}

function Shown({ prompt }: { prompt: Prompt }) {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const number = search.version ?? prompt.default_version;
  const version = useVersion(prompt.id, number);
  const versions = useVersions(prompt.id);
  const change = (next: Partial<PromptSearch>) => void navigate({ search: { ...search, ...next }, replace: true });
  const options = versions.rows.map(({ version }) => [version, describeVersion(prompt, version)] as const);
  const withVersion = (render: (version: Version) => ReactNode) => (
    <Loaded what="the version" query={version}>
      {render}
    </Loaded>
  );
  return (
    <Page
      title={prompt.name ?? "Prompt"}
      badge={prompt.archived_at !== null && <State state="archived" />}
      description={<Id id={prompt.id} />}
      actions={<Actions prompt={prompt} version={number} />}
    >
      <Card>
        <Facts
          facts={[
            ["Default version", prompt.default_version],
            ["Latest version", prompt.latest_version],
            ["Labels", Object.entries(prompt.labels).map(([name, version]) => `${name}: ${version}`).join(", ")],
            ["Created", <Time key="created" at={prompt.created_at} />],
            ["Archived", prompt.archived_at !== null && <Time key="archived" at={prompt.archived_at} />],
            ["Imported from", prompt.imported_from],
            ...Object.entries(prompt.metadata),
          ]}
        />
      </Card>
      <div className="filters section">
        <Field label="Version">
          <Select value={version.data?.version ?? number} options={options} onChange={(version) => change({ version })} />
        </Field>
      </div>
      <Tabs
        label="Parts of the prompt"
        value={search.tab ?? "content"}
        onChange={(tab) => change({ tab: promptSearch({ tab }).tab })}
        tabs={[
          { id: "content", title: "Content", content: withVersion((version) => <Content version={version} />) },
          { id: "try", title: "Try", content: withVersion((version) => <TryOut key={version.version} version={version} />) },
          {
            id: "compare",
            title: "Compare",
            content: withVersion((version) => <Comparison version={version} against={search.against} options={options} onChoose={(against) => change({ against })} />),
          },
          { id: "versions", title: "Versions", content: <Versions prompt={prompt} versions={versions} /> },
          { id: "use", title: "Use", content: withVersion((version) => <Use prompt={prompt} version={version} />) },
        ]}
      />
    </Page>
  );
}

function Actions({ prompt, version }: { prompt: Prompt; version: string }) {
  const isArchived = prompt.archived_at !== null;
  const params = { path: { prompt_id: prompt.id } };
  const archive = useMutation({
    mutationFn: () => take<unknown>(isArchived ? api.POST("/v1/prompts/{prompt_id}/unarchive", { params }) : api.POST("/v1/prompts/{prompt_id}/archive", { params })),
    onSuccess: refreshPrompts,
  });
  return (
    <>
      {archive.isError && <Failure title="The prompt was not changed" error={archive.error} />}
      <Link to="/prompts/$promptId/versions/new" params={{ promptId: prompt.id }} search={{ from: version }} className="button primary">
        New version
      </Link>
      <Button busy={archive.isPending} title="Requests that name an archived prompt are answered as before" onClick={() => archive.mutate()}>
        {isArchived ? "Unarchive" : "Archive"}
      </Button>
    </>
  );
}
