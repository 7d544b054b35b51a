import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, take } from "@/api/client";
import { refresh } from "@/api/get";
import { Field, Input } from "@/components/Field";
import { Form } from "@/components/Form";
import { Page } from "@/components/Page";

import { EMPTY_VERSION, isReadable, versionBody } from "./prompts";
import { VersionFields } from "./VersionFields";

const route = getRouteApi("/prompts/new");

/** Make a prompt with its first version. */
export default function NewPrompt() {
  const navigate = route.useNavigate();
  const [name, setName] = useState("");
  const [form, setForm] = useState(EMPTY_VERSION);

  async function create() {
    const { id } = await take(api.POST("/v1/prompts", { body: { ...versionBody(form), name: name.trim() || undefined } }));
    await refresh("/v1/prompts");
    await navigate({ to: "/prompts/$promptId", params: { promptId: id } });
  }

  return (
    <Page title="New prompt" description="A prompt has instructions, messages or both. A change makes a new version; none is ever changed.">
      <Form action="Create the prompt" failure="The prompt was not created" disabled={!isReadable(form)} onSubmit={create}>
        <Field label="Name of the prompt" param="name">
          <Input maxLength={255} placeholder="Replies to tickets" value={name} onChange={(event) => setName(event.target.value)} />
        </Field>
        <VersionFields form={form} onChange={setForm} />
      </Form>
    </Page>
  );
}
