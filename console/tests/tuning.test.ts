import { expect, it } from "vitest";

import { bodyOf, emptyForm, fieldsOf } from "@/pages/finetuning/tuning";

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
