import { useNavigate } from "@tanstack/react-router";
import { useState } from "react";

import { api, take } from "@/api/client";
import { refresh } from "@/api/get";
import { Field, Input } from "@/components/Field";
import { Form, FormDialog } from "@/components/Form";

import { againBody, EMPTY_RUN, runBody, type Run, type RunBody, type RunForm } from "./evals";
import { ModelField, RunFields } from "./RunFields";

/** Use the creation of a run, which opens its page. A run that repeats `earlier` is compared with that one. */
function useCreation(evalId: string, earlier?: Run) {
  const navigate = useNavigate();
  return async (body: RunBody) => {
    const run = await take(api.POST("/v1/evals/{eval_id}/runs", { params: { path: { eval_id: evalId } }, body }));
    await refresh("/v1/evals/{eval_id}/runs");
    await navigate({ to: "/evals/$evalId/runs/$runId", params: { evalId, runId: run.id }, search: { baseline: earlier?.id } });
  };
}

/** Make a run of an evaluation: a model, a file of items, a prompt. */
export function NewRun({ evalId }: { evalId: string }) {
  const [form, setForm] = useState<RunForm>(EMPTY_RUN);
  const create = useCreation(evalId);
  return (
    <Form action="Run" failure="The run was not created" disabled={form.file === ""} onSubmit={() => create(runBody(form))}>
      <RunFields form={form} onChange={(change) => setForm({ ...form, ...change })} />
    </Form>
  );
}

/** Make a run that asks another model about the same items, with the same prompt. */
export function RunAgain({ run, onClose }: { run: Run; onClose: () => void }) {
  const [model, setModel] = useState("");
  const [name, setName] = useState("");
  const create = useCreation(run.eval_id, run);

  return (
    <FormDialog
      title="Run with another model"
      action="Run"
      failure="The run was not created"
      disabled={model === ""}
      onSubmit={() => create(againBody(run, model, name))}
      onClose={onClose}
    >
      <p className="muted">The items, the prompt and the criteria stay, so that both runs can be compared.</p>
      <ModelField label="Model" none="Choose a model …" value={model} onChange={setModel} />
      <Field label="Name of the run">
        <Input value={name} maxLength={256} onChange={(event) => setName(event.target.value)} />
      </Field>
    </FormDialog>
  );
}
