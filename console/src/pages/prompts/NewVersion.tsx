import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, take } from "@/api/client";
import { get } from "@/api/get";
import { Form } from "@/components/Form";
import { ObjectLink } from "@/components/ObjectLink";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";

import { formOf, isReadable, versionBody, type Version } from "./prompts";
import { refreshPrompts, useVersion } from "./queries";
import { VersionFields } from "./VersionFields";

const route = getRouteApi("/prompts/$promptId/versions/new");

/** Make a version of a prompt, which begins as a copy of another one. */
export default function NewVersion() {
  const { promptId } = route.useParams();
  const { from } = route.useSearch();
  const prompt = useQuery(get("/v1/prompts/{prompt_id}", { path: { prompt_id: promptId } }));
  const version = useVersion(promptId, from ?? prompt.data?.latest_version);
  return (
    <Loaded what="the version" query={prompt.error ? { ...prompt, data: undefined } : version} page="New version">
      {(version) => <Fields key={version.version} version={version} name={prompt.data?.name ?? promptId} />}
    </Loaded>
  );
}

function Fields({ version, name }: { version: Version; name: string }) {
  const navigate = route.useNavigate();
  const [form, setForm] = useState(() => formOf(version));
  const promptId = version.prompt_id;

  async function create() {
    const created = await take(api.POST("/v1/prompts/{prompt_id}/versions", { params: { path: { prompt_id: promptId } }, body: versionBody(form) }));
    await refreshPrompts();
    await navigate({ to: "/prompts/$promptId", params: { promptId }, search: { tab: "compare", version: created.version, against: version.version } });
  }

  return (
    <Page
      title={`New version of ${name}`}
      description={
        <>
          It begins as a copy of version {version.version} of <ObjectLink id={promptId} />. The default version stays until you change it.
        </>
      }
    >
      <Form action="Create the version" failure="The version was not created" disabled={!isReadable(form)} onSubmit={create}>
        <VersionFields form={form} onChange={setForm} />
      </Form>
    </Page>
  );
}
