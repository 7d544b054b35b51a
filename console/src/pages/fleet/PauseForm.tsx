import { useState } from "react";

import { Field, Input, Select } from "@/components/Field";
import { FormDialog } from "@/components/Form";

import { pause, type Target } from "./steering";

const KINDS = [
  ["model", "A model"],
  ["project", "A project"],
  ["queue", "A queue"],
  ["worker", "A worker"],
] as const;
const HINTS: Readonly<Record<Target["kind"], string>> = {
  model: "Its name or an alias. Its aliases are paused, too.",
  project: "Its name, as in nightmill keys list.",
  queue: "Such as gpu.generate.",
  worker: "Its id.",
};

/** Ask what to pause, and pause it. */
export function PauseForm({ onClose }: { onClose: () => void }) {
  const [target, setTarget] = useState<Target>({ kind: "model", name: "" });
  const submit = () => pause({ ...target, name: target.name.trim() });
  return (
    <FormDialog title="Pause work" action="Pause it" failure="It was not paused" onSubmit={submit} onClose={onClose}>
      <p>Nothing new is started there. What runs goes on, and jobs are still accepted.</p>
      <Field label="What">
        <Select value={target.kind} onChange={(kind) => setTarget({ ...target, kind: kind as Target["kind"] })} options={KINDS} />
      </Field>
      <Field label="Name" hint={HINTS[target.kind]}>
        <Input required maxLength={255} value={target.name} onChange={(event) => setTarget({ ...target, name: event.target.value })} />
      </Field>
    </FormDialog>
  );
}
