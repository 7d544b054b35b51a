import { expect, it } from "vitest";

import { newPromotionSearch } from "@/pages/promotions/address";
import { candidateOf, describe, describeRule, EMPTY_PROMOTION, isComplete, promotionBody, scaleOf, type CriterionReport, type Promotion } from "@/pages/promotions/promotions";

const TARGETS: readonly Promotion["target"][] = [
  { type: "alias", id: "support-bot", model: "tuned" },
  { type: "stage", id: "ft:base:acme::1", stage: "production" },
  { type: "prompt", id: "pmpt_1", version: "4" },
  { type: "index", id: "vs_1", index_id: "vs_2" },
];
const FORM = { ...EMPTY_PROMOTION, alias: "support-bot", model: "tuned", evalId: "eval_1", file: "file-1" };

it("a promotion names its target and what that is to have", () => {
  expect(TARGETS.map((target) => [candidateOf(target), describe({ target })])).toEqual([
    ["tuned", "support-bot → tuned"],
    ["ft:base:acme::1", "ft:base:acme::1 → production"],
    ["4", "pmpt_1 → 4"],
    ["vs_2", "vs_1 → vs_2"],
  ]);
});

it("a gate asks the target by the name that it has in production", () => {
  expect(promotionBody(FORM)).toMatchObject({
    target: { type: "alias", id: "support-bot", model: "tuned" },
    gates: [{ eval_id: "eval_1", criterion: null, data_source: { type: "completions", model: "support-bot" }, rule: { type: "not_worse_than_incumbent", margin: 5 } }],
    force: false,
    reason: null,
  });
  expect(promotionBody({ ...FORM, type: "stage", rule: "minimum", criterion: "same" })).toMatchObject({
    target: { type: "stage", id: "tuned", stage: "production" },
    gates: [{ criterion: "same", data_source: { model: "tuned" }, rule: { type: "minimum", score: 0.9 } }],
  });
});

it("a forced promotion has a reason and no gates", () => {
  const forced = { ...FORM, force: true, evalId: "", file: "" };
  expect([isComplete(forced), isComplete({ ...forced, reason: " " }), isComplete({ ...forced, reason: "it leaks" })]).toEqual([false, false, true]);
  expect(promotionBody({ ...forced, reason: " it leaks " })).toMatchObject({ gates: [], force: true, reason: "it leaks" });
});

it.each([
  [{ alias: "" }, false],
  [{ model: "" }, false],
  [{ evalId: "" }, false],
  [{ file: "" }, false],
  [{}, true],
  [{ type: "stage", alias: "" } as const, true],
])("a form with %o is complete: %s", (change, complete) => {
  expect(isComplete({ ...FORM, ...change })).toBe(complete);
});

it("the rule of a gate is told in words", () => {
  expect(describeRule({ rule: { type: "minimum", score: 0.9 } })).toBe("mean score of at least 0.9");
  expect(describeRule({ rule: { type: "not_worse_than_incumbent", margin: 2 } })).toBe("loses less than 2 points to the incumbent");
});

it("the axis of the intervals ends at the bound that is furthest from 0, and a minimum has none", () => {
  const row: CriterionReport = { criterion: "same", outcome: "passed", items: 20, candidate: 0.9 };
  expect(scaleOf([{ ...row, low: -0.4, high: 0.1 }, { ...row, low: 0.1, high: 0.2 }])).toBe(0.4);
  expect(scaleOf([row, { ...row, low: null, high: null }])).toBeNull();
});

it("the address of a new promotion names an alias or a model", () => {
  expect(newPromotionSearch({ alias: 7, model: "" })).toEqual({ alias: "7", model: undefined });
});
