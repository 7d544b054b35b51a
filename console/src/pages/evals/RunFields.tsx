import { Field, Input, Select, TextArea } from "@/components/Field";
import { generates, isAlias, useModels } from "@/pages/fleet/models/served";
import { FileChoice } from "@/pages/finetuning/FileChoice";

import type { RunForm } from "./evals";

interface RunFieldsProps {
  form: RunForm;
  onChange: (change: Partial<RunForm>) => void;
}

/** Render the fields of a new run: the items, the model, and what it is asked. */
export function RunFields({ form, onChange }: RunFieldsProps) {
  return (
    <div className="grid halves">
      <FileChoice
        label="Items"
        purpose="evals"
        hint='One JSON object a line: {"item": {"question": "…", "answer": "…"}}'
        value={form.file}
        onChange={(file) => onChange({ file })}
      />
      <div className="stack">
        <ModelField
          label="Model"
          hint="Without a model, the samples that stand beside the items are graded."
          none="None: grade the samples of the file"
          value={form.model}
          onChange={(model) => onChange({ model })}
        />
        {form.model !== "" && (
          <Field label="Prompt" hint="{{ item.question }} inserts a field of the item.">
            <TextArea required value={form.prompt} onChange={(event) => onChange({ prompt: event.target.value })} />
          </Field>
        )}
        <Field label="Name of the run">
          <Input value={form.name} maxLength={256} onChange={(event) => onChange({ name: event.target.value })} />
        </Field>
      </div>
    </div>
  );
}

interface ModelFieldProps {
  label: string;
  value: string;
  onChange: (model: string) => void;
  /** What no choice means. */
  none: string;
  hint?: string;
}

/** Render the choice of a model that generates text. */
export function ModelField({ label, value, onChange, none, hint }: ModelFieldProps) {
  const models = useModels();
  const named = (models.data?.data ?? []).filter((model) => generates(model) && !isAlias(model));
  return (
    <Field label={label} hint={hint} error={models.isError ? models.error.message : null}>
      <Select value={value} onChange={onChange} options={[["", none], ...named.map(({ id }): [string, string] => [id, id])]} />
    </Field>
  );
}
