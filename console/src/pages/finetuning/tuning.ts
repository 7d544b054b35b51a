import type { Schema } from "@/api/client";
import { words } from "@/components/format";

export type TuningJob = Schema<"FineTuningJob">;
export type Progress = Schema<"TrainingProgress">;
export type Validation = Schema<"FineTuningValidation">;

const ENDED: readonly TuningJob["status"][] = ["succeeded", "failed", "cancelled"];

/** Return whether a job has ended. */
export function hasEnded(job: TuningJob): boolean {
  return ENDED.includes(job.status);
}

/** Return how a job trains: supervised, lora. */
export function methodOf(job: TuningJob): string {
  return `${job.method.type}, ${job.peft}`;
}

/** The hyperparameters of a job with their names. */
export function hyperparametersOf(job: TuningJob): [name: string, value: string | number][] {
  const chosen = job.method.dpo?.hyperparameters ?? job.method.supervised?.hyperparameters ?? job.hyperparameters;
  return Object.entries(chosen);
}

/** Return the name of a job: what its metadata calls it, its suffix, or its id. */
export function nameOf(job: TuningJob): string {
  return job.metadata?.name ?? job.user_provided_suffix ?? job.id;
}

/** Return what a job was asked to do, as texts by their names. */
export function parametersOf(job: TuningJob): [name: string, value: string][] {
  const facts: [name: string, value: string | number | null][] = [
    ["Model", job.model],
    ["Method", methodOf(job)],
    ...hyperparametersOf(job).map(([name, value]): [string, string | number] => [words(name), value]),
    ["Seed", job.seed],
    ["Rank", job.peft === "full" ? null : job.training.rank],
    ["Scheduler", job.training.scheduler],
    ["Training file", job.training_file],
    ["Validation file", job.validation_file],
  ];
  return facts.filter(([, value]) => value !== null).map(([name, value]) => [name, String(value)]);
}

/** Return the rows of two jobs' parameters, side by side; a parameter that one of them lacks is a dash there. */
export function compareParameters(first: TuningJob, second: TuningJob): { name: string; first: string; second: string }[] {
  const sides = [new Map(parametersOf(first)), new Map(parametersOf(second))] as const;
  const names = [...new Set([...sides[0].keys(), ...sides[1].keys()])];
  return names.map((name) => ({ name, first: sides[0].get(name) ?? "–", second: sides[1].get(name) ?? "–" }));
}

type Point = Progress["data"][number];

/** Return the steps of two trainings in order, and the values of each at these steps; null where one has none. */
export function alignCurves(first: readonly Point[], second: readonly Point[], of: (point: Point) => number | null) {
  const steps = [...new Set([...first, ...second].map(({ step }) => step))].sort((one, other) => one - other);
  const valuesOf = (points: readonly Point[]) => {
    const values = new Map(points.map((point) => [point.step, of(point)]));
    return steps.map((step) => values.get(step) ?? null);
  };
  return { steps, first: valuesOf(first), second: valuesOf(second) };
}

/** What the form of a new job asks for. Numbers are texts, since an empty one means that the server chooses. */
export interface TuningForm {
  model: string;
  trainingFile: string;
  validation: "none" | "holdout" | "file";
  validationFile: string;
  fraction: string;
  method: "supervised" | "dpo";
  peft: NonNullable<TuningJob["peft"]>;
  epochs: string;
  batchSize: string;
  multiplier: string;
  suffix: string;
  seed: string;
  maxSeconds: string;
}

/** Return the form of a new job as it is opened. */
export function emptyForm(model = "", trainingFile = ""): TuningForm {
  return {
    model,
    trainingFile,
    validation: "none",
    validationFile: "",
    fraction: "0.1",
    method: "supervised",
    peft: "lora",
    epochs: "",
    batchSize: "",
    multiplier: "",
    suffix: "",
    seed: "",
    maxSeconds: "",
  };
}

/** The fields of a new job. Those that are left out have the server's defaults, which the document calls required. */
type CreateBody = Schema<"CreateFineTuningJob">;

/** Return the fields that the examination and the creation of a job have in common. */
export function fieldsOf(form: TuningForm): Schema<"ValidateFineTuning"> {
  const hyperparameters = {
    ...numberOf("n_epochs", form.epochs),
    ...numberOf("batch_size", form.batchSize),
    ...numberOf("learning_rate_multiplier", form.multiplier),
  };
  return {
    model: form.model,
    training_file: form.trainingFile,
    method: { type: form.method, [form.method]: { hyperparameters } },
    peft: form.peft,
    ...(form.validation === "file" ? { validation_file: form.validationFile } : {}),
    ...(form.validation === "holdout" ? { validation: { type: "holdout", fraction: Number(form.fraction) } } : {}),
    ...numberOf("seed", form.seed),
  } as Schema<"ValidateFineTuning">;
}

/** Return the body that creates the job. */
export function bodyOf(form: TuningForm): CreateBody {
  return {
    ...fieldsOf(form),
    ...(form.suffix.trim() === "" ? {} : { suffix: form.suffix.trim() }),
    ...(form.maxSeconds === "" ? {} : { early_stopping: { max_seconds: Number(form.maxSeconds) } }),
  } as CreateBody;
}

function numberOf(name: string, text: string): Record<string, number> {
  return text.trim() === "" ? {} : { [name]: Number(text) };
}
