import { Button } from "@/components/Button";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { Card } from "@/components/Page";
import { ModelField } from "@/pages/evals/RunFields";

import { JSON_FIELDS, jsonProblem, NUMBERS, ROLES, TYPES, usedVariables, type MessageForm, type VariableForm, type VersionForm } from "./prompts";

interface VersionFieldsProps {
  form: VersionForm;
  onChange: (form: VersionForm) => void;
}

const ROLE_OPTIONS = ROLES.map((role) => [role, role] as const);
const TYPE_OPTIONS = TYPES.map((type) => [type, type] as const);
const CONTENTS = [
  ["text", "Text"],
  ["parts", "Parts, as JSON"],
] as const;

/** Render the fields of a version of a prompt. */
export function VersionFields({ form, onChange }: VersionFieldsProps) {
  const change = (next: Partial<VersionForm>) => onChange({ ...form, ...next });
  const changeMessage = (index: number, next: Partial<MessageForm>) =>
    change({ messages: form.messages.map((message, n) => (n === index ? { ...message, ...next } : message)) });
  return (
    <>
      <Card className="stack">
        <ModelField label="Model" hint="A request may name another one." none="None: each request names one" value={form.model} onChange={(model) => change({ model })} />
        <Field label="Instructions" param="instructions" hint="{{customer}} stands for the value that a request gives the variable of that name.">
          <TextArea value={form.instructions} onChange={(event) => change({ instructions: event.target.value })} />
        </Field>
        {form.messages.map((message, index) => (
          <MessageFields
            key={index}
            name={`Message ${index + 1}`}
            message={message}
            onChange={(next) => changeMessage(index, next)}
            onRemove={() => change({ messages: form.messages.filter((_, n) => n !== index) })}
          />
        ))}
        <div className="actions">
          <Button onClick={() => change({ messages: [...form.messages, { role: "user", isParts: false, text: "" }] })}>Add a message</Button>
        </div>
      </Card>
      <Variables form={form} onChange={change} />
      <Card className="stack">
        <div className="grid">
          {NUMBERS.map(({ name, label, max, step }) => (
            <Field key={name} label={label} param={`parameters.${name}`}>
              <Input
                type="number"
                min={0}
                max={max}
                step={step === 1 ? 1 : "any"}
                value={form.numbers[name]}
                onChange={(event) => change({ numbers: { ...form.numbers, [name]: event.target.value } })}
              />
            </Field>
          ))}
        </div>
        <div className="grid halves">
          {JSON_FIELDS.map(({ name, label, hint }) => (
            <Field key={name} label={label} param={name} hint={hint} error={jsonProblem(form.json[name])}>
              <TextArea className="input mono" rows={3} value={form.json[name]} onChange={(event) => change({ json: { ...form.json, [name]: event.target.value } })} />
            </Field>
          ))}
        </div>
      </Card>
    </>
  );
}

interface MessageFieldsProps {
  name: string;
  message: MessageForm;
  onChange: (next: Partial<MessageForm>) => void;
  onRemove: () => void;
}

function MessageFields({ name, message, onChange, onRemove }: MessageFieldsProps) {
  return (
    <div className="stack">
      <Field label={name} error={message.isParts ? jsonProblem(message.text) : null} hint={message.isParts && '[{"type": "input_text", "text": "…"}]'}>
        <TextArea className={message.isParts ? "input mono" : "input"} value={message.text} onChange={(event) => onChange({ text: event.target.value })} />
      </Field>
      <div className="actions">
        <Select aria-label={`Role of ${name}`} value={message.role} options={ROLE_OPTIONS} onChange={(role) => onChange({ role: role as MessageForm["role"] })} />
        <Select aria-label={`Content of ${name}`} value={message.isParts ? "parts" : "text"} options={CONTENTS} onChange={(kind) => onChange({ isParts: kind === "parts" })} />
        <Button tone="plain" aria-label={`Remove ${name}`} onClick={onRemove}>
          Remove
        </Button>
      </div>
    </div>
  );
}

/** Render the fields of the variables that the texts use. */
function Variables({ form, onChange }: { form: VersionForm; onChange: (next: Partial<VersionForm>) => void }) {
  const variables = usedVariables(form);
  const change = (variable: VariableForm) => onChange({ variables: [...form.variables.filter(({ name }) => name !== variable.name), variable] });
  return (
    <Card className="stack">
      <h2>Variables</h2>
      {variables.length === 0 && <p className="muted">The texts use none. Write {"{{customer}}"} where a request shall give a value.</p>}
      {variables.map((variable) => (
        <div key={variable.name} className="filters" role="group" aria-label={`Variable ${variable.name}`}>
          <Field label={`Type of ${variable.name}`}>
            <Select value={variable.type} options={TYPE_OPTIONS} onChange={(type) => change({ ...variable, type: type as VariableForm["type"] })} />
          </Field>
          <Field label={`Default of ${variable.name}`}>
            <Input value={variable.default} placeholder="none" onChange={(event) => change({ ...variable, default: event.target.value })} />
          </Field>
          <label className="row">
            <input type="checkbox" checked={variable.required} onChange={(event) => change({ ...variable, required: event.target.checked })} />
            {variable.name} is required
          </label>
        </div>
      ))}
    </Card>
  );
}
