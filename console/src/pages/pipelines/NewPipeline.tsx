import { getRouteApi } from "@tanstack/react-router";
import { useMemo, useRef, useState } from "react";

import { api, take } from "@/api/client";
import { refresh } from "@/api/get";
import { Field, Input, TextArea } from "@/components/Field";
import { Form } from "@/components/Form";
import { formatCount } from "@/components/format";
import { Page } from "@/components/Page";
import { sendFile } from "@/pages/files/uploads";

import { keyOf, namedFiles, readDefinition, replaceFiles, type Definition } from "./definition";

const route = getRouteApi("/pipelines/new");

const EXAMPLE = `name: support
steps:
  - name: train
    kind: fine_tuning
    request:
      model: smollm2-135m-instruct
      training_file: dataset:tickets/train
  - name: answer
    kind: batch
    after: [train]
    request:
      input_file_id: {file: questions.jsonl}
      endpoint: /v1/chat/completions
      completion_window: 24h`;
const ROWS = 20;

/** Submit a pipeline that is written as YAML or JSON, with the files that it names by their paths. */
export default function NewPipeline() {
  const navigate = route.useNavigate();
  const [text, setText] = useState("");
  const { definition, problem } = useMemo(() => read(text), [text]);
  const named = useMemo(() => (definition === null ? [] : namedFiles(definition)), [definition]);
  const [chosen, setChosen] = useState<Readonly<Record<string, File>>>({});
  // A pipeline that is refused leaves its files, which the next try goes on with.
  const sent = useRef(new Map<File, string>());

  async function create() {
    const ids: Record<string, string> = {};
    for (const file of named) {
      const content = chosen[keyOf(file)]!;
      const id = sent.current.get(content) ?? (await sendFile(content, file.purpose, new AbortController().signal, () => undefined)).id;
      sent.current.set(content, id);
      ids[keyOf(file)] = id;
    }
    const body = replaceFiles(definition!, (file) => ids[keyOf(file)]);
    const { id } = await take(api.POST("/v1/pipelines", { body: body as never })); // the server checks what was written
    await refresh("/v1/pipelines", "/v1/files");
    await navigate({ to: "/pipelines/$pipelineId", params: { pipelineId: id } });
  }

  const isComplete = definition !== null && named.every((file) => keyOf(file) in chosen);
  return (
    <Page title="New pipeline" description="Steps as YAML or JSON: what the command takes from a file.">
      <Form action="Start the pipeline" failure="The pipeline was not created" disabled={!isComplete} onSubmit={create}>
        <Field label="Steps" hint={definition ? describe(definition) : "{{train.fine_tuned_model}} is what an earlier step has made; {file: PATH} is a file that you choose below."} error={problem}>
          <TextArea className="input mono" rows={ROWS} spellCheck={false} placeholder={EXAMPLE} value={text} onChange={(event) => setText(event.target.value)} />
        </Field>
        {named.length > 0 && (
          <div className="grid">
            {named.map((file) => (
              <Field key={keyOf(file)} label={`File ${file.path}`} hint={`For a step that reads files of the purpose ${file.purpose}.`}>
                <Input
                  type="file"
                  onChange={(event) => {
                    const content = event.target.files?.[0];
                    if (content) setChosen((before) => ({ ...before, [keyOf(file)]: content }));
                  }}
                />
              </Field>
            ))}
          </div>
        )}
      </Form>
    </Page>
  );
}

function read(text: string): { definition: Definition | null; problem: string | null } {
  if (text.trim() === "") return { definition: null, problem: null };
  try {
    return { definition: readDefinition(text), problem: null };
  } catch (error) {
    return { definition: null, problem: (error as SyntaxError).message };
  }
}

/** Return the steps of a definition in a sentence. What is no text is left to the server, which refuses it in words. */
function describe({ steps }: Definition): string {
  const names = steps.map(({ name }) => (typeof name === "string" ? name : "?"));
  return `${formatCount(steps.length, "step")}: ${names.join(", ")}`;
}
