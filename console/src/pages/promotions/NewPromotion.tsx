import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, take } from "@/api/client";
import { get, refresh } from "@/api/get";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { Form } from "@/components/Form";
import { Card, Page } from "@/components/Page";
import { criteriaOf } from "@/pages/evals/evals";
import { ModelField } from "@/pages/evals/RunFields";
import { FileChoice } from "@/pages/finetuning/FileChoice";

import { EMPTY_PROMOTION, isComplete, promotionBody, type PromotionForm } from "./promotions";

const route = getRouteApi("/promotions/new");
const LISTED = 100;
const TYPES = [
  ["alias", "An alias, to another model"],
  ["stage", "A tuned model, into production"],
] as const;
const RULES = [
  ["not_worse_than_incumbent", "Not worse than the incumbent"],
  ["minimum", "A minimum of the mean score"],
] as const;

interface FieldsProps {
  form: PromotionForm;
  onChange: (change: Partial<PromotionForm>) => void;
}

/** Promote an alias or a tuned model, by one gate or by force. */
export default function NewPromotion() {
  const { alias = "", model = "" } = route.useSearch();
  const navigate = route.useNavigate();
  const [form, setForm] = useState<PromotionForm>({ ...EMPTY_PROMOTION, type: model === "" ? "alias" : "stage", alias, model });
  const change = (change: Partial<PromotionForm>) => setForm({ ...form, ...change });

  async function create() {
    const { id } = await take(api.POST("/v1/promotions", { body: promotionBody(form) }));
    await refresh("/v1/promotions");
    await navigate({ to: "/promotions/$promotionId", params: { promotionId: id } });
  }

  return (
    <Page title="New promotion" description="Prompts and indexes are promoted by the API or the command, and so is what has several gates.">
      <Form action={form.force ? "Move it now" : "Start the promotion"} failure="The promotion was not created" disabled={!isComplete(form)} onSubmit={create}>
        <Card>
          <TargetFields form={form} onChange={change} />
        </Card>
        <Card className="stack">
          <label className="row">
            <input type="checkbox" checked={form.force} onChange={(event) => change({ force: event.target.checked })} />
            <span>Move it without a gate</span>
          </label>
          {!form.force && <GateFields form={form} onChange={change} />}
          <Field label="Reason" hint={form.force ? "The audit log has it as a forced move." : "It stands in the history of what moves."} param="reason">
            <Input required={form.force} maxLength={512} value={form.reason} onChange={(event) => change({ reason: event.target.value })} />
          </Field>
        </Card>
      </Form>
    </Page>
  );
}

function TargetFields({ form, onChange }: FieldsProps) {
  const aliases = useQuery(get("/v1/aliases", { query: { limit: LISTED } }));
  const versions = useQuery({ ...get("/v1/model_versions", { query: { limit: LISTED } }), enabled: form.type === "stage" });
  const own = (aliases.data?.data ?? []).filter(({ source }) => source !== "models_file");
  const candidates = (versions.data?.data ?? []).filter(({ stage }) => stage !== "production");
  return (
    <div className="grid">
      <Field label="What moves">
        <Select value={form.type} options={TYPES} onChange={(type) => onChange({ type: type as PromotionForm["type"], model: "" })} />
      </Field>
      {form.type === "alias" ? (
        <>
          <Field label="Alias" param="target.id" error={aliases.error?.message}>
            <Select
              value={form.alias}
              options={[["", "Choose an alias …"], ...own.map(({ id, targets }) => [id, `${id} (now ${targets[0]?.model})`] as const)]}
              onChange={(alias) => onChange({ alias })}
            />
          </Field>
          <ModelField label="Candidate" none="Choose a model …" hint="It gets all requests." value={form.model} onChange={(model) => onChange({ model })} />
        </>
      ) : (
        <Field label="Candidate" hint="The version that is in production is archived." param="target.id" error={versions.error?.message}>
          <Select
            value={form.model}
            options={[["", "Choose a version …"], ...candidates.map(({ id, family, number, stage }) => [id, `${family} ${number} (${stage})`] as const)]}
            onChange={(model) => onChange({ model })}
          />
        </Field>
      )}
    </div>
  );
}

function GateFields({ form, onChange }: FieldsProps) {
  const evals = useQuery(get("/v1/evals", { query: { limit: LISTED, order: "desc" } }));
  const listed = evals.data?.data ?? [];
  const chosen = listed.find(({ id }) => id === form.evalId);
  const criteria = chosen ? criteriaOf(chosen) : [];
  return (
    <div className="grid halves">
      <div className="stack">
        <Field label="Evaluation" param="gates[0].eval_id" error={evals.error?.message}>
          <Select
            value={form.evalId}
            options={[["", "Choose an evaluation …"], ...listed.map(({ id, name }) => [id, name || id] as const)]}
            onChange={(evalId) => onChange({ evalId, criterion: "" })}
          />
        </Field>
        <Field label="Criterion" param="gates[0].criterion">
          <Select value={form.criterion} options={[["", "All of them"], ...criteria.map(({ name }) => [name, name] as const)]} onChange={(criterion) => onChange({ criterion })} />
        </Field>
        <Field label="Rule" param="gates[0].rule.type">
          <Select value={form.rule} options={RULES} onChange={(rule) => onChange({ rule: rule as PromotionForm["rule"] })} />
        </Field>
        {form.rule === "minimum" ? (
          <Field label="Minimum" hint="The mean score; by all criteria, the share of items that pass.">
            <Input type="number" required step="any" value={form.score} onChange={(event) => onChange({ score: event.target.value })} />
          </Field>
        ) : (
          <Field label="Margin" hint="Points, each a hundredth of the range of a score, that the candidate may lose.">
            <Input type="number" required min={0} max={100} step="any" value={form.margin} onChange={(event) => onChange({ margin: event.target.value })} />
          </Field>
        )}
      </div>
      <div className="stack">
        <FileChoice
          label="Items"
          purpose="evals"
          hint='At least 20, one JSON object a line: {"item": {"question": "…", "answer": "…"}}'
          value={form.file}
          onChange={(file) => onChange({ file })}
        />
        <Field label="Prompt" hint="{{ item.question }} inserts a field of the item.">
          <TextArea required value={form.prompt} onChange={(event) => onChange({ prompt: event.target.value })} />
        </Field>
      </div>
    </div>
  );
}
