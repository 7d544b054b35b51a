// @vitest-environment node

import { expect, it } from "vitest";

import { cellsOf, columnsOf } from "@/pages/jobs/tabulate";

const SCHEMA = { schema: { properties: { capital: { type: "string" }, size: { type: "integer" } } } };
const CHAT = { response_format: { type: "json_schema", json_schema: { name: "row", ...SCHEMA } } };
const RESPONSE = { text: { format: { type: "json_schema", name: "row", ...SCHEMA } } };

function result(request: object, answer: string | null, row?: Record<string, unknown>) {
  return { custom_id: "row-1", answer, error_code: null, request: request as Record<string, unknown>, row };
}

it.each([
  [{}, undefined, null],
  [{ response_format: null, text: { format: null } }, undefined, null],
  [{}, { country: "Peru" }, { inputs: ["country"], fields: [] }],
  [CHAT, { country: "Peru" }, { inputs: ["country"], fields: ["capital", "size"] }],
  [RESPONSE, undefined, { inputs: [], fields: ["capital", "size"] }],
])("the columns of %j with the row %j are %j", (request, row, columns) => {
  expect(columnsOf(result(request, "", row))).toEqual(columns);
});

it("a result has the cells of its row and of its answer", () => {
  const columns = { inputs: ["country"], fields: ["capital", "size"] };
  const cells = (answer: string | null) => cellsOf(result(CHAT, answer, { country: "Peru" }), columns);
  expect(cells('{"capital": "Lima", "size": 10}')).toEqual(["Peru", "Lima", "10"]);
  expect([cells("no JSON"), cells(null), cells("[1]")]).toEqual([["Peru", "", ""], ["Peru", "", ""], ["Peru", "", ""]]);
  expect(cellsOf(result({}, "Lima", { country: "Peru" }), { inputs: ["country"], fields: [] })).toEqual(["Peru", "Lima"]);
});
