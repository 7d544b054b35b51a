// @vitest-environment node

import { expect, it } from "vitest";

import { usageSearch } from "@/pages/usage/address";
import { asCsv, seriesOf, tabulate, tokensOf, type UsageAnswers } from "@/pages/usage/usage";

const [MONDAY, TUESDAY] = [1_764_547_200, 1_764_633_600];

/** Return answers of two days, with the results of each in the order of the arguments. */
function answersOf(completions: object[][], embeddings: object[][], costs: object[][]): UsageAnswers {
  const buckets = (results: object[][]) =>
    [MONDAY, TUESDAY].map((start_time, n) => ({ object: "bucket", start_time, end_time: start_time + 86_400, results: results[n] ?? [] }));
  return { completions: buckets(completions), embeddings: buckets(embeddings), costs: buckets(costs) } as unknown as UsageAnswers;
}

function chats(model: string, input: number, cached: number, output: number) {
  return { model, input_tokens: input, input_cached_tokens: cached, output_tokens: output, num_model_requests: 1 };
}

function cost(line_item: string, value: number | null) {
  return { line_item, amount: value === null ? null : { value, currency: "usd" } };
}

const ANSWERS = answersOf(
  [[chats("small", 100, 40, 10), chats("large", 5, 0, 5)], [chats("small", 1, 0, 1)]],
  [[{ model: "vectors", input_tokens: 7, num_model_requests: 3 }]],
  [[cost("small", 0.1), cost("vectors", null)], [cost("small", 0.2), cost("large", 0.7)]],
);

it("sums the answers by group and day, the most expensive group first", () => {
  const { days, rows, total } = tabulate(ANSWERS);

  expect(days).toEqual([MONDAY, TUESDAY]);
  expect(rows.map(({ id, requests, cost }) => [id, requests, cost])).toEqual([["large", 1, 0.7], ["small", 2, 0.3], ["vectors", 3, null]]);
  expect(rows[1]!.days.get(MONDAY)).toEqual({ requests: 1, inputTokens: 100, cachedTokens: 40, outputTokens: 10, cost: 0.1 });
  expect(total).toEqual({ requests: 6, inputTokens: 113, cachedTokens: 40, outputTokens: 16, cost: 1 });
});

it("has no cost, and not a cost of 0, where nothing has a price", () => {
  expect(tabulate(answersOf([], [], [[cost("vectors", null)]])).total.cost).toBeNull();
  expect(tabulate(answersOf([], [], [])).total.cost).toBeNull();
});

it("tells the same key name of two projects apart", () => {
  const result = { api_key_id: null, num_model_requests: 1, input_tokens: 1, input_cached_tokens: 0, output_tokens: 0 };

  expect(tabulate(answersOf([[{ ...result, project_id: "p" }, { ...result, project_id: "q" }]], [], [])).rows).toHaveLength(2);
});

it("draws a series for each of the first seven groups, and one for all others", () => {
  const table = tabulate(answersOf([Array.from({ length: 10 }, (_, n) => chats(`model-${n}`, 10 - n, 0, 0))], [], []));
  const series = seriesOf(table, ({ id }) => id!, tokensOf);

  expect(series.map(({ label }) => label)).toEqual([...Array.from({ length: 7 }, (_, n) => `model-${n}`), "3 others"]);
  expect(series.at(-1)!.values).toEqual([3 + 2 + 1, 0]);
  expect(seriesOf(tabulate(ANSWERS), ({ id }) => id!, ({ cost }) => cost ?? 0).map(({ values }) => values)).toEqual([[0, 0.7], [0.1, 0.2], [0, 0]]);
});

it("writes CSV with a line for each day and group with usage, and no formulas", () => {
  const name = new Map([["large", '=cmd|"x"']]);

  expect(asCsv(tabulate(ANSWERS), "model", ({ id }) => name.get(id!) ?? id!).split("\r\n")).toEqual([
    "day,model,name,requests,input_tokens,cached_tokens,output_tokens,cost_usd",
    `2025-12-01,"large","'=cmd|""x""",1,5,0,5,`,
    '2025-12-01,"small","small",1,100,40,10,0.1',
    '2025-12-01,"vectors","vectors",3,7,0,0,',
    `2025-12-02,"large","'=cmd|""x""",0,0,0,0,0.7`,
    '2025-12-02,"small","small",1,1,0,1,0.2',
    "",
  ]);
});

it.each([
  [{}, {}],
  [{ span: "week", by: "key", project: "proj_1" }, { span: "week", by: "key", project: "proj_1" }],
  [{ span: "month", by: "project", project: "" }, {}],
  [{ span: ["x"], by: 7, project: { a: 1 } }, {}],
])("reads the address %j as %j", (given, search) => {
  expect(usageSearch(given)).toEqual(search);
});
