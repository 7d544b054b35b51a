// @vitest-environment node

import { expect, it } from "vitest";

import { preview, questionOf } from "@/pages/evals/evals";

it.each([
  [{ question: "Why?", answer: "So." }, "Why?"],
  [{ n: 7, empty: "", text: "Why?" }, "Why?"],
  [{ n: 7 }, '{"n":7}'],
])("the question of the item %j is %j", (datasource_item, question) => {
  expect(questionOf({ datasource_item })).toBe(question);
});

it("a text is previewed on one line", () => {
  expect(preview("a\n b")).toBe("a b");
  expect(preview("x".repeat(121))).toBe(`${"x".repeat(120)} …`);
});
