import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";

import { api, take } from "@/api/client";
import { refresh } from "@/api/get";
import { Field, Input, Select } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { FileChoice } from "@/pages/finetuning/FileChoice";
import { embeds, useModels } from "@/pages/fleet/models/served";

import { EMPTY_MONITOR, monitorBody, SOURCES, type MonitorForm } from "./drift";

interface FieldsProps {
  form: MonitorForm;
  onChange: (change: Partial<MonitorForm>) => void;
}

/** Ask for what a monitor compares, and create it with its baseline. */
export function NewMonitor({ onClose }: { onClose: () => void }) {
  const navigate = useNavigate();
  const [form, setForm] = useState(EMPTY_MONITOR);
  const change = (change: Partial<MonitorForm>) => setForm({ ...form, ...change });
  const models = useModels();
  const embedders = (models.data?.data ?? []).filter(embeds);

  async function create() {
    const { id } = await take(api.POST("/v1/drift_monitors", { body: monitorBody(form) }));
    await refresh("/v1/drift_monitors");
    await navigate({ to: "/drift/$monitorId", params: { monitorId: id } });
  }

  return (
    <FormDialog
      title="New monitor"
      action="Create the monitor"
      failure="The monitor was not created"
      disabled={form.source === "file" && form.file === ""}
      onSubmit={create}
      onClose={onClose}
    >
      <Field label="Name" param="name">
        <Input required maxLength={255} placeholder="refunds" value={form.name} onChange={(event) => change({ name: event.target.value })} />
      </Field>
      <Field label="Texts" hint={form.source === "file" ? undefined : "What the user said last in each answer."}>
        <Select value={form.source} options={SOURCES} onChange={(source) => change({ source: source as MonitorForm["source"] })} />
      </Field>
      {form.source === "file" ? (
        <FileChoice label="File" purpose="user_data" hint='One JSON object a line: {"input": "…"}' value={form.file} onChange={(file) => change({ file })} />
      ) : (
        <AnswerFields form={form} onChange={change} />
      )}
      <Field label="Texts of a check" hint="50 to 2,000. Large samples find smaller changes." param="sample">
        <Input type="number" required min={50} max={2000} value={form.sample} onChange={(event) => change({ sample: event.target.value })} />
      </Field>
      <Field label="Embeddings by" param="embedding_model">
        <Select
          value={form.embedding}
          options={[["", "The model of the deployment"], ...embedders.map(({ id }) => [id, id] as const)]}
          onChange={(embedding) => change({ embedding })}
        />
      </Field>
    </FormDialog>
  );
}

/** Render the fields of a source of stored answers: which, of how many hours, and the time of the baseline. */
function AnswerFields({ form, onChange }: FieldsProps) {
  return (
    <>
      <div className="grid">
        <Field label="Model or alias" hint="Empty: all of them." param="source.model">
          <Input maxLength={255} value={form.model} onChange={(event) => onChange({ model: event.target.value })} />
        </Field>
        <Field label="Metadata" hint="Entries such as team=search.">
          <Input value={form.metadata} onChange={(event) => onChange({ metadata: event.target.value })} />
        </Field>
      </div>
      <Field label="Hours" hint="A check compares the answers of the last 1 to 720 hours." param="window_seconds">
        <Input type="number" required min={1} max={720} value={form.hours} onChange={(event) => onChange({ hours: event.target.value })} />
      </Field>
      <div className="grid">
        <Field label="Baseline from" hint="Empty: the answers that a check would compare now.">
          <Input type="datetime-local" value={form.from} onChange={(event) => onChange({ from: event.target.value })} />
        </Field>
        <Field label="Baseline until">
          <Input type="datetime-local" value={form.until} onChange={(event) => onChange({ until: event.target.value })} />
        </Field>
      </div>
    </>
  );
}
