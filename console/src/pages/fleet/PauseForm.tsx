import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";

import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";

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
  const start = useMutation({ mutationFn: () => pause({ ...target, name: target.name.trim() }), onSuccess: onClose });
  function submit(event: FormEvent) {
    event.preventDefault();
    start.mutate();
  }
  return (
    <Dialog title="Pause something" open onClose={onClose}>
      <form className="stack" onSubmit={submit}>
        <p>Nothing new is started there. What runs goes on, and jobs are still accepted.</p>
        <Field label="What">
          <Select value={target.kind} onChange={(kind) => setTarget({ ...target, kind: kind as Target["kind"] })} options={KINDS} />
        </Field>
        <Field label="Name" hint={HINTS[target.kind]}>
          <Input required maxLength={255} value={target.name} onChange={(event) => setTarget({ ...target, name: event.target.value })} />
        </Field>
        {start.isError && <Failure error={start.error} />}
        <div className="actions end">
          <Button onClick={onClose}>Cancel</Button>
          <Button tone="primary" type="submit" busy={start.isPending}>
            Pause it
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
