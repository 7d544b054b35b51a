import { useMutation } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";

import { api, take } from "@/api/client";
import { refresh } from "@/api/get";
import { Button } from "@/components/Button";
import { Failure } from "@/components/Failure";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { useLeaveQuestion } from "@/components/leaving";
import { Card, Page } from "@/components/Page";

import { EMPTY_EVAL, EMPTY_RUN, evalBody, GRADERS, runBody, type EvalForm, type RunForm } from "./evals";
import { ModelField, RunFields } from "./RunFields";

const route = getRouteApi("/evals/new");

interface Given {
  criterion: EvalForm;
  run: RunForm;
}

/** Make an evaluation with one criterion, and its first run. */
export default function NewEval() {
  const { model = "" } = route.useSearch();
  const [criterion, setCriterion] = useState(EMPTY_EVAL);
  const [initialRun] = useState<RunForm>({ ...EMPTY_RUN, model });
  const [run, setRun] = useState(initialRun);
  useLeaveQuestion(criterion !== EMPTY_EVAL || run !== initialRun);
  const navigate = route.useNavigate();
  // A run that is refused leaves its eval, which the next try goes on with.
  const [made, setMade] = useState<{ id: string; of: EvalForm } | null>(null);
  const create = useMutation({
    mutationFn: async (given: Given) => {
      const evalId = made?.of === given.criterion ? made.id : (await take(api.POST("/v1/evals", { body: evalBody(given.criterion) }))).id;
      setMade({ id: evalId, of: given.criterion });
      return take(api.POST("/v1/evals/{eval_id}/runs", { params: { path: { eval_id: evalId } }, body: runBody(given.run) }));
    },
    onSuccess: async ({ id, eval_id }) => {
      await refresh("/v1/evals");
      await navigate({ to: "/evals/$evalId/runs/$runId", params: { evalId: eval_id, runId: id } });
    },
  });

  function submit(event: FormEvent) {
    event.preventDefault();
    create.mutate({ criterion, run });
  }

  return (
    <Page title="New evaluation" description="Other graders, such as python code, rankings and formulas, are made by the API or the command.">
      <form className="stack" onSubmit={submit}>
        <Card>
          <CriterionFields form={criterion} onChange={(change) => setCriterion({ ...criterion, ...change })} />
        </Card>
        <Card>
          <RunFields form={run} onChange={(change) => setRun({ ...run, ...change })} />
        </Card>
        {create.isError && <Failure title="The evaluation was not created" error={create.error} />}
        <div className="actions">
          <Button type="submit" tone="primary" busy={create.isPending} disabled={run.file === ""}>
            Create and run
          </Button>
          {run.file === "" && <span className="muted">Choose or drop a file of items first.</span>}
        </div>
      </form>
    </Page>
  );
}

function CriterionFields({ form, onChange }: { form: EvalForm; onChange: (change: Partial<EvalForm>) => void }) {
  const isJudged = form.grader === "score_model";
  return (
    <div className="grid">
      <Field label="Name of the evaluation">
        <Input required maxLength={256} placeholder="capitals" value={form.name} onChange={(event) => onChange({ name: event.target.value })} />
      </Field>
      <Field label="Criterion">
        <Select value={form.grader} options={GRADERS} onChange={(grader) => onChange({ grader: grader as EvalForm["grader"] })} />
      </Field>
      {isJudged ? (
        <>
          <ModelField label="Judge" none="Choose a model …" value={form.judge} onChange={(judge) => onChange({ judge })} />
          <Field label="What the judge is asked" hint="{{ sample.output_text }} is the answer, {{ item.… }} a field of the item.">
            <TextArea required value={form.instruction} onChange={(event) => onChange({ instruction: event.target.value })} />
          </Field>
        </>
      ) : (
        <Field label="Reference" hint="A field of the item: {{ item.answer }}">
          <Input required value={form.reference} onChange={(event) => onChange({ reference: event.target.value })} />
        </Field>
      )}
      {!form.grader.startsWith("string_check") && (
        <Field label="Passes from" hint="The score from which an answer passes, 0 to 1.">
          <Input type="number" required min={0} max={1} step="any" value={form.threshold} onChange={(event) => onChange({ threshold: event.target.value })} />
        </Field>
      )}
    </div>
  );
}
