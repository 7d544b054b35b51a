import type { Schema } from "@/api/client";
import { EMPTY_RUN, runBody } from "@/pages/evals/evals";

export type Promotion = Schema<"PromotionObject">;
export type Gate = Schema<"Gate">;
export type CriterionReport = Schema<"CriterionReport">;

/** What a promotion moves, by the type of its target. */
export const TARGETS = {
  alias: "Alias",
  stage: "Model into production",
  prompt: "Default version of a prompt",
  index: "Index of a vector store",
} as const satisfies Readonly<Record<Promotion["target"]["type"], string>>;

/** Return whether a promotion goes on. */
export function isLive({ status }: Pick<Promotion, "status">): boolean {
  return status === "in_progress" || status === "cancelling";
}

/** Return what the target of a promotion is to have: a model, a version or an index. */
export function candidateOf(target: Promotion["target"]): string {
  switch (target.type) {
    case "alias":
      return target.model;
    case "stage":
      return target.id;
    case "prompt":
      return target.version;
    case "index":
      return target.index_id;
  }
}

/** Return a promotion in a few words: the target and what it is to have. */
export function describe({ target }: Pick<Promotion, "target">): string {
  return `${target.id} → ${target.type === "stage" ? "production" : candidateOf(target)}`;
}

/** Return the rule of a gate in words. */
export function describeRule({ rule }: Pick<Gate, "rule">): string {
  return rule.type === "minimum" ? `mean score of at least ${rule.score}` : `loses less than ${rule.margin} points to the incumbent`;
}

/** Return where the axis of the intervals of a gate ends; null where it compares nothing. */
export function scaleOf(criteria: readonly CriterionReport[]): number | null {
  const bounds = criteria.flatMap(({ low, high }) => [low, high]).filter((bound) => typeof bound === "number");
  return bounds.length === 0 ? null : Math.max(...bounds.map(Math.abs), Number.MIN_VALUE);
}

/** What the form of a new promotion asks for. `model` is the candidate. */
export interface PromotionForm {
  type: "alias" | "stage";
  alias: string;
  model: string;
  evalId: string;
  criterion: string;
  rule: Gate["rule"]["type"];
  margin: string;
  score: string;
  file: string;
  prompt: string;
  force: boolean;
  reason: string;
}

export const EMPTY_PROMOTION: PromotionForm = {
  type: "alias",
  alias: "",
  model: "",
  evalId: "",
  criterion: "",
  rule: "not_worse_than_incumbent",
  margin: "5",
  score: "0.9",
  file: "",
  prompt: EMPTY_RUN.prompt,
  force: false,
  reason: "",
};

/** Return whether a form says all that a promotion needs. */
export function isComplete(form: PromotionForm): boolean {
  const target = form.model !== "" && (form.type === "stage" || form.alias !== "");
  return target && (form.force ? form.reason.trim() !== "" : form.evalId !== "" && form.file !== "");
}

/** Return the body that creates the promotion of a form: with one gate, or forced. */
export function promotionBody(form: PromotionForm) {
  const alias = { type: "alias", id: form.alias, model: form.model } as const;
  const stage = { type: "stage", id: form.model, stage: "production" } as const;
  return {
    target: form.type === "alias" ? alias : stage,
    gates: form.force ? [] : [gateOf(form)],
    force: form.force,
    reason: form.reason.trim() || null,
  };
}

function gateOf(form: PromotionForm) {
  const model = form.type === "alias" ? form.alias : form.model;
  const minimum = { type: "minimum", score: Number(form.score) } as const;
  const notWorse = { type: "not_worse_than_incumbent", margin: Number(form.margin) } as const;
  return {
    ...runBody({ ...EMPTY_RUN, model, file: form.file, prompt: form.prompt }),
    eval_id: form.evalId,
    criterion: form.criterion || null,
    rule: form.rule === "minimum" ? minimum : notWorse,
  };
}
