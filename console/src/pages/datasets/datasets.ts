import type { Schema } from "@/api/client";
import { formatCount, formatShare } from "@/components/format";

export type Dataset = Schema<"DatasetObject">;
export type Version = Schema<"DatasetVersionObject">;
export type Split = Schema<"DatasetSplit">;

/** A part of a split by fractions. */
interface Part {
  readonly name: string;
  readonly fraction: number;
}

/** How the rows of a dataset are split, as the API shows it. */
interface SplitRule {
  readonly type: "random" | "group" | "temporal" | "k_fold";
  readonly parts?: readonly Part[];
  readonly by?: string;
  readonly folds?: number;
}

/** A source of a version, as the API shows it. */
export interface Source {
  readonly type: "file_id" | "stored_completions" | "responses" | "eval_run" | "batch";
  readonly id?: string;
  readonly reference?: string;
  readonly run_id?: string;
  readonly batch_id?: string;
  readonly [condition: string]: unknown;
}

/** The ways to split a dataset, with their words. */
export const SPLITS = [
  ["none", "Not at all: one file"],
  ["random", "At random"],
  ["group", "By a value: rows with the same one stay together"],
  ["temporal", "By time: the oldest rows come first"],
  ["k_fold", "Into folds, for cross-validation"],
] as const;

/** A new dataset as the form has it. */
export interface DatasetForm {
  readonly name: string;
  readonly description: string;
  readonly split: (typeof SPLITS)[number][0];
  /** Names and fractions: train=0.8, test=0.2. */
  readonly parts: string;
  readonly by: string;
  readonly folds: string;
  readonly seed: string;
}

export const EMPTY_DATASET: DatasetForm = { name: "", description: "", split: "none", parts: "train=0.8, test=0.2", by: "", folds: "5", seed: "0" };

/** The purposes of files that have rows. */
export const ROW_PURPOSES: ReadonlySet<string> = new Set(["batch", "batch_output", "dataset", "evals", "fine-tune", "user_data"]);

/** Return the parts that a text means, such as `train=0.8, test=0.2`; null where it means none. */
export function partsOf(text: string): Part[] | null {
  const parts = text.split(",").map((word) => {
    const [name = "", fraction = "", ...rest] = word.split("=").map((each) => each.trim());
    return { name, fraction: rest.length > 0 || fraction === "" ? NaN : Number(fraction) };
  });
  return parts.every(({ name, fraction }) => name !== "" && fraction > 0 && fraction <= 1) ? parts : null;
}

/** Return whether the split of a form has parts. */
export function hasParts({ split }: DatasetForm): boolean {
  return split === "random" || split === "group" || split === "temporal";
}

/** Return a new dataset as the API takes it. */
export function datasetBody(form: DatasetForm): Schema<"CreateDataset"> {
  const by = form.by.trim();
  const rule = {
    type: form.split,
    ...(hasParts(form) ? { parts: partsOf(form.parts) ?? [] } : { folds: Number(form.folds) }),
    ...(form.split !== "random" && by !== "" && { by }),
  };
  return {
    name: form.name.trim(),
    description: form.description.trim() || undefined,
    seed: Number(form.seed),
    ...(form.split !== "none" && { split: rule }),
  } as Schema<"CreateDataset">;
}

/** Return how a dataset is split, in words: by /user: train 80 %, test 20 %. */
export function describeSplit(dataset: Pick<Dataset, "split">): string {
  const { type, parts = [], by, folds = 0 } = dataset.split as unknown as SplitRule;
  if (type === "k_fold") return formatCount(folds, "fold") + (by ? ` by ${by}` : "");
  if (type === "random" && parts.length === 1) return `one file, ${parts[0]!.name}`;
  const words = { random: "at random", group: `by ${by}`, temporal: `by the time at ${by}` }[type];
  return `${words}: ${parts.map(({ name, fraction }) => `${name} ${formatShare(fraction)}`).join(", ")}`;
}

/** Return the sources of a version. */
export function sourcesOf(version: Version): readonly Source[] {
  return version.sources as readonly unknown[] as readonly Source[];
}

const SOURCE_WORDS = { file_id: "File", stored_completions: "Stored chats", responses: "Stored responses", eval_run: "Evaluation run", batch: "Batch" } as const;

/** Return the words for the kind of a source. */
export function sourceLabel({ type, reference }: Source): string {
  return reference === undefined ? SOURCE_WORDS[type] : "Dataset";
}

/** Return what the rows of a source are selected by, and their form: model: m, status: fail, format: messages. */
export function describeConditions(source: Source): string {
  const conditions = Object.entries(source).filter(([name, value]) => !["type", "id", "reference", "run_id", "batch_id"].includes(name) && value !== null && value !== undefined);
  return conditions.map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");
}

/** Return the source that a text names: a run of an evaluation, a batch, or a file or a split of a dataset. */
export function sourceNamed(text: string): Schema<"OutputItemRows"> | Schema<"BatchRows"> | Schema<"DatasetFileSource"> {
  if (text.startsWith("batch_")) return { type: "batch", batch_id: text, format: "items" };
  return text.startsWith("evalrun_") ? { type: "eval_run", run_id: text, format: "items" } : { type: "file_id", id: text };
}

/** Return whether a version is no longer being made: it is complete, or will not be. */
export function isMade({ status }: Pick<Version, "status">): boolean {
  return status !== "queued" && status !== "in_progress";
}
