import type { Schema } from "@/api/client";

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
