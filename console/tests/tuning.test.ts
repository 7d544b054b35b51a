import { expect, it } from "vitest";

import { alignCurves, bodyOf, compareParameters, emptyForm, fieldsOf, type Progress, type TuningJob } from "@/pages/finetuning/tuning";

const FORM = emptyForm("base", "file-1");

it("leaves out what the server chooses", () => {
  expect(bodyOf(FORM)).toEqual({
    model: "base",
    training_file: "file-1",
    method: { type: "supervised", supervised: { hyperparameters: {} } },
    peft: "lora",
  });
});

it("sends numbers, the validation and the limits that were typed", () => {
  const form = { ...FORM, method: "dpo", epochs: "2", multiplier: "0.5", seed: "0", suffix: " s ", maxSeconds: "60" } as const;

  expect(bodyOf({ ...form, validation: "holdout", fraction: "0.2" })).toEqual({
    model: "base",
    training_file: "file-1",
    method: { type: "dpo", dpo: { hyperparameters: { n_epochs: 2, learning_rate_multiplier: 0.5 } } },
    peft: "lora",
    seed: 0,
    validation: { type: "holdout", fraction: 0.2 },
    suffix: "s",
    early_stopping: { max_seconds: 60 },
  });
  expect(fieldsOf({ ...form, validation: "file", validationFile: "file-2" })).toMatchObject({ validation_file: "file-2" });
});

it("aligns the curves of two trainings by their steps", () => {
  const points = (losses: [step: number, loss: number][]) => losses.map(([step, train_loss]) => ({ step, train_loss })) as Progress["data"];

  const aligned = alignCurves(points([[10, 2], [20, 1]]), points([[5, 3], [20, 0.5]]), (point) => point.train_loss);

  expect(aligned).toEqual({ steps: [5, 10, 20], first: [null, 2, 1], second: [3, null, 0.5] });
});

it("puts the parameters of two trainings side by side", () => {
  const job = (changes: object) =>
    ({
      model: "base",
      method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2 } } },
      peft: "lora",
      seed: 0,
      training: { rank: 16, scheduler: "linear" },
      training_file: "file-1",
      validation_file: null,
      ...changes,
    }) as unknown as TuningJob;

  const rows = compareParameters(job({}), job({ peft: "full", seed: 7, validation_file: "file-2" }));

  expect(rows.filter(({ first, second }) => first !== second)).toEqual([
    { name: "Method", first: "supervised, lora", second: "supervised, full" },
    { name: "Seed", first: "0", second: "7" },
    { name: "Rank", first: "16", second: "–" },
    { name: "Validation file", first: "–", second: "file-2" },
  ]);
  expect(rows).toContainEqual({ name: "n epochs", first: "2", second: "2" });
});
