import { useState, type FormEvent } from "react";

import { Button } from "@/components/Button";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { useLeaveQuestion } from "@/components/leaving";
import { ModelField } from "@/pages/evals/RunFields";
import { useConversation } from "@/pages/inference/conversation";
import { Lane } from "@/pages/inference/Lane";

import { jsonProblem, referenceTo, variablesOf, writeValue, type Variable, type Version } from "./prompts";

import "@/pages/inference/playground.css";

/** Ask with a version of a prompt: values of its variables, a model, an input that follows its messages. */
export function TryOut({ version }: { version: Version }) {
  const variables = variablesOf(version);
  const [texts, setTexts] = useState(() => Object.fromEntries(variables.map((each) => [each.name, writeValue(each.type, each.default)])));
  const [model, setModel] = useState("");
  const [input, setInput] = useState("");
  const conversation = useConversation();
  useLeaveQuestion(conversation.turns.length > 0);
  const asked = model || version.model;

  function run() {
    const values = variables.map(({ name }) => `${name}: ${texts[name]}`);
    const body = {
      ...(model && { model }),
      prompt: referenceTo(version.prompt_id, version.version, variables, texts),
      ...(input.trim() && { input }),
      store: false,
    };
    void conversation.send({ question: [...values, input].filter(Boolean).join("\n") || `Version ${version.version}`, protocol: "responses", body, store: "" });
  }

  function submit(event: FormEvent) {
    event.preventDefault();
    if (!conversation.isStreaming) run();
  }

  return (
    <div className="grid halves">
      <form className="card stack" aria-label="Values" onSubmit={submit}>
        <ModelField label="Model" none={version.model === null ? "Choose a model …" : `That of the prompt: ${version.model}`} value={model} onChange={setModel} />
        {variables.map((variable) => (
          <ValueField key={variable.name} variable={variable} value={texts[variable.name]!} onChange={(text) => setTexts({ ...texts, [variable.name]: text })} />
        ))}
        <Field label="Input" hint="Follows the messages of the prompt. It may be empty.">
          <TextArea rows={2} value={input} onChange={(event) => setInput(event.target.value)} />
        </Field>
        <div className="actions">
          <Button type="submit" tone="primary" disabled={conversation.isStreaming || !asked}>
            Run
          </Button>
          <Button disabled={!conversation.isStreaming} onClick={conversation.stop}>
            Stop
          </Button>
          <Button tone="plain" onClick={conversation.clear}>
            Clear
          </Button>
        </div>
      </form>
      <Lane model={asked ?? "the model"} conversation={conversation} empty="Run the prompt. Each answer stays here, so that several can be compared." onRetry={run} />
    </div>
  );
}

const FILE_HINT = "The id of a file of the project, or an address.";

function ValueField({ variable: { name, type, required }, value, onChange }: { variable: Variable; value: string; onChange: (text: string) => void }) {
  const isRequired = required && type !== "string";
  const hints = { string: null, number: "A number.", boolean: null, json: "JSON.", image: FILE_HINT, file: FILE_HINT };
  const fields = {
    string: () => <TextArea rows={2} value={value} onChange={(event) => onChange(event.target.value)} />,
    number: () => <Input type="number" step="any" required={isRequired} value={value} onChange={(event) => onChange(event.target.value)} />,
    boolean: () => <Select value={value} options={BOOLEANS} onChange={onChange} />,
    json: () => <TextArea className="input mono" rows={3} value={value} onChange={(event) => onChange(event.target.value)} />,
    image: () => <Input required={isRequired} value={value} onChange={(event) => onChange(event.target.value)} />,
    file: () => <Input required={isRequired} value={value} onChange={(event) => onChange(event.target.value)} />,
  };
  return (
    <Field label={name} hint={hints[type]} error={type === "json" ? jsonProblem(value) : null}>
      {fields[type]()}
    </Field>
  );
}

const BOOLEANS = [
  ["", "–"],
  ["true", "true"],
  ["false", "false"],
] as const;
