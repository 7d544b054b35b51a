import { useMutation } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";

import { api, take } from "@/api/client";
import { refresh } from "@/api/get";
import { Button } from "@/components/Button";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";
import { useLeaveQuestion } from "@/components/leaving";
import { Card, Page, Section } from "@/components/Page";
import { generates, isAlias, useModels } from "@/pages/fleet/models/served";

import { Examination } from "./Examination";
import { FileChoice } from "./FileChoice";
import { bodyOf, emptyForm, fieldsOf, type TuningForm } from "./tuning";

const route = getRouteApi("/fine-tuning/new");

const METHODS = [
  ["supervised", "Supervised: answers to imitate"],
  ["dpo", "DPO: preferred answers and others"],
] as const;
const PEFTS = [
  ["lora", "LoRA: an adapter"],
  ["qlora", "QLoRA: an adapter on 4-bit weights"],
  ["auto", "LoRA or QLoRA, by memory"],
  ["full", "All weights"],
] as const;
const VALIDATIONS = [
  ["none", "None"],
  ["holdout", "Hold examples out"],
  ["file", "A file of its own"],
] as const;
const LINES = {
  supervised: 'One JSON object a line: {"messages": [{"role": "user", …}, {"role": "assistant", …}]}',
  dpo: 'One JSON object a line: {"input": …, "preferred_output": […], "non_preferred_output": […]}',
} as const;

/** Make a fine-tuning job: its files are examined first, and the job is created once they are valid. */
export default function NewTuning() {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const [initial] = useState(() => emptyForm(search.model, search.file));
  const [form, setForm] = useState(initial);
  useLeaveQuestion(form !== initial);
  const examine = useMutation({
    mutationFn: ({ form, measure }: { form: TuningForm; measure: boolean }) =>
      take(api.POST("/v1/fine_tuning/jobs/validate", { body: { ...fieldsOf(form), measure } })),
  });
  const create = useMutation({
    mutationFn: (body: ReturnType<typeof bodyOf>) => take(api.POST("/v1/fine_tuning/jobs", { body })),
    onSuccess: async (job) => {
      await refresh("/v1/fine_tuning/jobs");
      await navigate({ to: "/fine-tuning/$jobId", params: { jobId: job.id } });
    },
  });
  // An examination holds for the fields that it examined.
  const isCurrent = JSON.stringify(fieldsOf(form)) === (examine.variables && JSON.stringify(fieldsOf(examine.variables.form)));
  const isValid = isCurrent && examine.data?.valid === true;

  function submit(event: FormEvent) {
    event.preventDefault();
    if (isValid) create.mutate(bodyOf(form));
    else examine.mutate({ form, measure: false });
  }

  return (
    <Page title="New fine-tuning job" description="The files are examined first: errors by line, tokens, steps, seconds and memory.">
      <form className="stack" onSubmit={submit}>
        <Fields form={form} onChange={(change) => setForm({ ...form, ...change })} />
        {examine.isError && isCurrent && <Failure title="The files could not be examined" error={examine.error} />}
        {examine.data && isCurrent && (
          <Section title="Examination">
            <Examination validation={examine.data} isExamining={examine.isPending} onExamine={(measure) => examine.mutate({ form, measure })} />
          </Section>
        )}
        {create.isError && <Failure title="The job was not created" error={create.error} />}
        <Steps isValid={isValid} isReady={form.model !== "" && form.trainingFile !== ""} isExamining={examine.isPending} isCreating={create.isPending} />
      </form>
    </Page>
  );
}

interface StepsProps {
  /** The files were examined, and are valid. */
  isValid: boolean;
  /** There is something to examine. */
  isReady: boolean;
  isExamining: boolean;
  isCreating: boolean;
}

/** Render the buttons of both steps, of which the next one is enabled. */
function Steps({ isValid, isReady, isExamining, isCreating }: StepsProps) {
  return (
    <div className="actions">
      <Button type="submit" tone={isValid ? "normal" : "primary"} busy={isExamining} disabled={isValid || !isReady}>
        {isExamining ? "Examining …" : "Examine the files"}
      </Button>
      <Button type="submit" tone={isValid ? "primary" : "normal"} disabled={!isValid} busy={isCreating}>
        Create the job
      </Button>
      {!isReady && <span className="muted">Choose a model and a training file first.</span>}
    </div>
  );
}

interface FieldsProps {
  form: TuningForm;
  onChange: (change: Partial<TuningForm>) => void;
}

function Fields({ form, onChange }: FieldsProps) {
  return (
    <>
      <Card>
        <div className="grid">
          <ModelChoice value={form.model} onChange={(model) => onChange({ model })} />
          <Field label="Method">
            <Select value={form.method} options={METHODS} onChange={(method) => onChange({ method: method as TuningForm["method"] })} />
          </Field>
          <Field label="Trained weights">
            <Select value={form.peft} options={PEFTS} onChange={(peft) => onChange({ peft: peft as TuningForm["peft"] })} />
          </Field>
          <Field label="Suffix" hint="A part of the new model's name.">
            <Input value={form.suffix} maxLength={64} placeholder="support" onChange={(event) => onChange({ suffix: event.target.value })} />
          </Field>
        </div>
      </Card>
      <Card>
        <div className="grid halves">
          <FileChoice label="Training file" purpose="fine-tune" hint={LINES[form.method]} value={form.trainingFile} onChange={(trainingFile) => onChange({ trainingFile })} />
          <div className="stack">
            <Field label="Validation" hint="Examples that are not trained on, to see whether the model learns or memorizes.">
              <Select value={form.validation} options={VALIDATIONS} onChange={(validation) => onChange({ validation: validation as TuningForm["validation"] })} />
            </Field>
            {form.validation === "holdout" && (
              <Field label="Fraction held out">
                <Input type="number" required min={0.01} max={0.9} step="any" value={form.fraction} onChange={(event) => onChange({ fraction: event.target.value })} />
              </Field>
            )}
            {form.validation === "file" && (
              <FileChoice
                label="Validation file"
                purpose="fine-tune"
                hint="Lines as in the training file."
                value={form.validationFile}
                onChange={(validationFile) => onChange({ validationFile })}
              />
            )}
          </div>
        </div>
      </Card>
      <details>
        <summary>Hyperparameters and limits</summary>
        <Card>
          <Hyperparameters form={form} onChange={onChange} />
        </Card>
      </details>
    </>
  );
}

function Hyperparameters({ form, onChange }: FieldsProps) {
  const auto = { type: "number", placeholder: "auto" } as const;
  return (
    <div className="grid">
      <Field label="Epochs" hint="Passes over the data, 1 to 50.">
        <Input {...auto} min={1} max={50} value={form.epochs} onChange={(event) => onChange({ epochs: event.target.value })} />
      </Field>
      <Field label="Batch size" hint="Examples of a step, 1 to 256.">
        <Input {...auto} min={1} max={256} value={form.batchSize} onChange={(event) => onChange({ batchSize: event.target.value })} />
      </Field>
      <Field label="Learning rate multiplier" hint="Of the method's own rate.">
        <Input {...auto} min={0} step="any" value={form.multiplier} onChange={(event) => onChange({ multiplier: event.target.value })} />
      </Field>
      <Field label="Seed" hint="For the same order of the data.">
        <Input type="number" min={0} placeholder="drawn" value={form.seed} onChange={(event) => onChange({ seed: event.target.value })} />
      </Field>
      <Field label="Seconds at most" hint="The job fails after so long a training, with a checkpoint.">
        <Input type="number" min={1} placeholder="no limit" value={form.maxSeconds} onChange={(event) => onChange({ maxSeconds: event.target.value })} />
      </Field>
    </div>
  );
}

function ModelChoice({ value, onChange }: { value: string; onChange: (model: string) => void }) {
  const models = useModels();
  const names = (models.data?.data ?? []).filter((model) => generates(model) && !isAlias(model)).map(({ id }) => id);
  const options = (names.includes(value) || value === "" ? names : [value, ...names]).map((name): [string, string] => [name, name]);
  return (
    <Field label="Model" hint="A model of this deployment, or a tuned one to go on from." error={models.isError ? models.error.message : null}>
      <Select required value={value} options={[["", "Choose a model …"], ...options]} onChange={onChange} />
    </Field>
  );
}
