import type { Schema } from "@/api/client";
import { words } from "@/components/format";
import { cut } from "@/pages/jobs/cut";

export type Eval = Schema<"EvalObject">;
export type Run = Schema<"EvalRunObject">;
export type OutputItem = Schema<"OutputItem">;
export type Comparison = Schema<"RunComparison">;

/** A criterion of an eval, as far as every type has the same fields. */
export interface Criterion {
  name: string;
  type: string;
}

/** Return the criteria of an eval. */
export function criteriaOf(row: Eval): Criterion[] {
  return row.testing_criteria.map((criterion) => ({ name: String(criterion.name), type: String(criterion.type) }));
}

/** Return whether a run has ended. */
export function hasEnded(run: Run): boolean {
  return run.status !== "queued" && run.status !== "in_progress";
}

/** Return the share of the graded items that pass; null without any. */
export function passShare({ passed, failed, errored }: { passed: number; failed: number; errored: number }): number | null {
  const total = passed + failed + errored;
  return total === 0 ? null : passed / total;
}

/** A result of a criterion for one item. */
export interface ItemResult {
  name: string;
  passed: boolean;
  score: number | null;
}

/** Return the results of an item. Other fields of a result depend on its grader. */
export function resultsOf(item: OutputItem): ItemResult[] {
  return item.results.map(({ name, passed, score }) => ({
    name: String(name),
    passed: passed === true,
    score: typeof score === "number" ? score : null,
  }));
}

/** Return the answer that was graded: the texts of the sample, one below the other. */
export function answerOf({ sample }: OutputItem): string {
  const output: unknown = sample.output;
  if (!Array.isArray(output)) return "";
  return output.map((message: { content?: unknown }) => textOf(message.content)).join("\n\n");
}

/** Return the question of an item: its first field that is a text, or all of the item as JSON where none is. */
export function questionOf({ datasource_item }: Pick<OutputItem, "datasource_item">): string {
  const text = Object.values(datasource_item).find((value) => typeof value === "string" && value !== "");
  return typeof text === "string" ? text : JSON.stringify(datasource_item);
}

/** Characters of a question or an answer in a list. */
const PREVIEW = 120;

/** Return the beginning of a text on one line. */
export function preview(text: string): string {
  const { shown, left } = cut(text, PREVIEW);
  return `${shown.replaceAll(/\s+/g, " ")}${left > 0 ? " …" : ""}`;
}

/** Return a value as text: texts as they are, all else as JSON. */
export function textOf(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

/** The templates of graders that the form offers, with what each needs. */
export const GRADERS = [
  ["string_check.ilike", "Contains the reference, in any case"],
  ["string_check.like", "Contains the reference"],
  ["string_check.eq", "Equals the reference"],
  ["text_similarity.rouge_l", "ROUGE-L: words in common, in their order"],
  ["text_similarity.fuzzy_match", "Fuzzy match of characters"],
  ["text_similarity.bleu", "BLEU: n-grams in common"],
  ["text_similarity.cosine", "Cosine of embeddings"],
  ["score_model", "A model judges the answer, from 0 to 1"],
] as const;

/** What the form of a new evaluation asks for. */
export interface EvalForm {
  name: string;
  grader: (typeof GRADERS)[number][0];
  reference: string;
  threshold: string;
  judge: string;
  instruction: string;
}

/** What the form of a new run asks for. */
export interface RunForm {
  name: string;
  model: string;
  prompt: string;
  file: string;
}

const ANSWER = "{{ sample.output_text }}";

export const EMPTY_EVAL: EvalForm = {
  name: "",
  grader: "string_check.ilike",
  reference: "{{ item.answer }}",
  threshold: "0.5",
  judge: "",
  instruction: `How good is this answer, from 0 to 1?\n\nQuestion: {{ item.question }}\nAnswer: ${ANSWER}`,
};

export const EMPTY_RUN: RunForm = { name: "", model: "", prompt: "{{ item.question }}", file: "" };

/** Return the body that creates the eval of a form. */
export function evalBody(form: EvalForm): Schema<"CreateEval"> {
  return {
    name: form.name,
    data_source_config: { type: "custom", item_schema: { type: "object" }, include_sample_schema: true },
    testing_criteria: [graderOf(form)],
  };
}

function graderOf(form: EvalForm): Schema<"CreateEval">["testing_criteria"][number] {
  const threshold = { pass_threshold: Number(form.threshold) };
  const [type, how] = form.grader.split(".");
  if (type === "score_model") {
    return { type, name: "judge", model: form.judge, input: [{ role: "user", content: form.instruction }], range: [0, 1], ...threshold };
  }
  const texts = { input: ANSWER, reference: form.reference };
  if (type === "string_check") {
    return { type, name: `${how} reference`, operation: how as Schema<"StringCheck">["operation"], ...texts };
  }
  const evaluation_metric = how as Schema<"TextSimilarity">["evaluation_metric"];
  return { type: "text_similarity", name: words(evaluation_metric), evaluation_metric, ...texts, ...threshold };
}

/** The body that creates a run. */
export interface RunBody {
  name?: string;
  data_source: Schema<"JsonlSource"> | Schema<"CompletionsSource">;
}

/** Return the body that creates the run of a form. Without a model, the items have their samples. */
export function runBody(form: RunForm): RunBody {
  const source = { type: "file_id", id: form.file } as const;
  const name = form.name.trim() === "" ? {} : { name: form.name.trim() };
  if (form.model === "") return { ...name, data_source: { type: "jsonl", source } };
  return {
    ...name,
    data_source: {
      type: "completions",
      model: form.model,
      source,
      input_messages: { type: "template", template: [{ role: "user", content: form.prompt }] },
      sampling_params: { temperature: 0, n: 1 },
    },
  };
}

/** Return the body of a run that asks another model what an earlier one asked. */
export function againBody(run: Run, model: string, name: string): RunBody {
  // The server returns a source as it was given.
  const data_source = { ...run.data_source, model } as unknown as RunBody["data_source"];
  return { ...(name.trim() === "" ? {} : { name: name.trim() }), data_source };
}

/** Return the file that holds the items of a run; null where they come from elsewhere. */
export function itemsFileOf(run: Run): string | null {
  const source = run.data_source.source as { type?: unknown; id?: unknown } | undefined;
  return source?.type === "file_id" ? String(source.id) : null;
}
