import { expect, it } from "vitest";

import { datasetSearch } from "@/pages/datasets/address";
import { datasetBody, describeConditions, describeSplit, EMPTY_DATASET, partsOf, sourceLabel, sourceNamed, type Dataset, type DatasetForm } from "@/pages/datasets/datasets";

const PARTS = [
  { name: "train", fraction: 0.8 },
  { name: "test", fraction: 0.2 },
];

function described(split: object): string {
  return describeSplit({ split } as unknown as Dataset);
}

it("parts are read from names and fractions, and from nothing else", () => {
  expect(partsOf(" train=0.8,test = .2 ")).toEqual(PARTS);
  for (const text of ["", "train", "train=", "=1", "train=0", "train=2", "train=a", "train=0.5=0.5", "train=0.8,"]) expect(partsOf(text), text).toBeNull();
});

it.each<[Partial<DatasetForm>, object | undefined]>([
  [{ split: "none", by: "/user" }, undefined],
  [{ split: "random", by: "/user" }, { type: "random", parts: PARTS }],
  [{ split: "group", by: " /user " }, { type: "group", parts: PARTS, by: "/user" }],
  [{ split: "temporal", by: "/at" }, { type: "temporal", parts: PARTS, by: "/at" }],
  [{ split: "k_fold", by: "" }, { type: "k_fold", folds: 5 }],
  [{ split: "k_fold", by: "/user", folds: "3" }, { type: "k_fold", folds: 3, by: "/user" }],
])("the form %o sends its split and nothing that it does not show", (change, split) => {
  const body = datasetBody({ ...EMPTY_DATASET, name: " refunds ", ...change });
  expect(JSON.parse(JSON.stringify(body))).toEqual({ name: "refunds", seed: 0, ...(split && { split }) });
});

it("a split is described in words", () => {
  expect(described({ type: "random", parts: [{ name: "all", fraction: 1 }] })).toBe("one file, all");
  expect(described({ type: "random", parts: PARTS })).toBe("at random: train 80 %, test 20 %");
  expect(described({ type: "group", parts: PARTS, by: "/user" })).toBe("by /user: train 80 %, test 20 %");
  expect(described({ type: "temporal", parts: PARTS, by: "/at" })).toBe("by the time at /at: train 80 %, test 20 %");
  expect(described({ type: "k_fold", folds: 5 })).toBe("5 folds");
  expect(described({ type: "k_fold", folds: 3, by: "/user" })).toBe("3 folds by /user");
});

it("a source is named by its kind and by what selects its rows", () => {
  const run = { type: "eval_run", run_id: "evalrun_1", status: "fail", format: "messages" } as const;
  expect([sourceLabel(run), describeConditions(run)]).toEqual(["Evaluation run", "status: fail, format: messages"]);
  expect(sourceLabel({ type: "file_id", id: "file-1", reference: "dataset:refunds@1/train" })).toBe("Dataset");
  expect([sourceLabel({ type: "batch", batch_id: "batch_1" }), describeConditions({ type: "batch", batch_id: "batch_1" })]).toEqual(["Batch", ""]);
  expect(describeConditions({ type: "file_id", id: "file-1" })).toBe("");
  expect(describeConditions({ type: "responses", metadata: { team: "support" }, model: null })).toBe('metadata: {"team":"support"}');
});

it("the id of a run names its output items, that of a batch its answers, and any other text a file", () => {
  expect(sourceNamed("batch_1")).toEqual({ type: "batch", batch_id: "batch_1", format: "items" });
  expect(sourceNamed("evalrun_1")).toEqual({ type: "eval_run", run_id: "evalrun_1", format: "items" });
  expect(sourceNamed("dataset:refunds@1/train")).toEqual({ type: "file_id", id: "dataset:refunds@1/train" });
});

it("the address of a dataset names a version by its number alone", () => {
  expect([2, "2", -1, 1.5, null].map((version) => datasetSearch({ version }).version)).toEqual([2, undefined, undefined, undefined, undefined]);
});
