import { useState } from "react";

import { Field, Select } from "@/components/Field";
import { Snippet } from "@/components/Snippet";
import { asCurl, asPython } from "@/pages/inference/requests";

import { referenceTo, variablesOf, writeValue, type Prompt, type VariableType, type Version } from "./prompts";

/** A value of each type, for variables without a default. */
const EXAMPLES: Readonly<Record<VariableType, string>> = {
  string: "…",
  number: "1",
  boolean: "true",
  json: "{}",
  image: "https://example.com/picture.png",
  file: "https://example.com/document.pdf",
};

/** Show programs that ask with a prompt: with its default version, a label, or the version that is shown. */
export function Use({ prompt, version }: { prompt: Prompt; version: Version }) {
  const [named, setNamed] = useState("");
  const variables = variablesOf(version);
  const texts = Object.fromEntries(variables.map((each) => [each.name, writeValue(each.type, each.default) || EXAMPLES[each.type]]));
  const body = { ...(version.model === null && { model: "…" }), prompt: referenceTo(prompt.id, named || undefined, variables, texts) };
  const options = [
    ["", `The default version, now ${prompt.default_version}`],
    ...Object.entries(prompt.labels).map(([label, number]) => [label, `The label ${label}, now ${number}`] as const),
    [version.version, `Version ${version.version}, always`],
  ] as const;
  return (
    <div className="stack">
      <div className="filters">
        <Field label="The request names">
          <Select value={named} options={options} onChange={setNamed} />
        </Field>
      </div>
      <Snippet label="Python" text={asPython(location.origin, "responses", body)} />
      <Snippet label="Command" text={asCurl(location.origin, "responses", body)} />
      <p className="muted">
        Fields of the request replace those of the prompt. Lines of a batch for /v1/responses and runs of evaluations take the same <code>prompt</code>; a chat
        completion takes it in <code>extra_body</code>.
      </p>
    </div>
  );
}
