// @vitest-environment node

import { describe, expect, it } from "vitest";

import { endpointOf, filler, liner, makeRequests, placeholders, problemsOf, readHead, type AnswerColumn, type Template } from "@/pages/batches/requests";

const TEMPLATE: Template = {
  endpoint: "/v1/chat/completions",
  model: " m ",
  system: "",
  prompt: "Name the capital of {{country}}.",
  limit: null,
  temperature: null,
  columns: [],
  idColumn: null,
};
const COLUMNS: AnswerColumn[] = [
  { name: " capital ", type: "string", choices: "" },
  { name: "size", type: "choice", choices: "small, large" },
];
const SCHEMA = {
  type: "object",
  properties: { capital: { type: "string" }, size: { type: "string", enum: ["small", "large"] } },
  required: ["capital", "size"],
  additionalProperties: false,
};

async function linesOf(content: Blob): Promise<unknown[]> {
  return (await content.text()).trimEnd().split("\n").map((line) => JSON.parse(line) as unknown);
}

describe("a prompt template", () => {
  it("names columns, with blanks around them or not", () => {
    expect(placeholders("{{a}} {{ b c }} {{a}} {d} {{}}")).toEqual(["a", "b c", ""]);
  });

  it("is filled with fields, which are not filled again", () => {
    const fill = filler("{{a}}-{{ b }}-{{a}}", ["a", "b"]);
    expect(fill(["{{b}}", "$&"])).toBe("{{b}}-$&-{{b}}");
    expect(fill(["x"])).toBe("x--x");
  });

  it("takes the names of properties that every object has as columns like others", () => {
    expect(filler("{{__proto__}} {{constructor}}", ["__proto__", "constructor"])(["1", "2"])).toBe("1 2");
  });

  it.each([
    [{}, []],
    [{ prompt: "{{town}}", system: "{{x}}" }, ["The table has no column “x”.", "The table has no column “town”."]],
    [{ model: " " }, ["Choose a model."]],
    [{ prompt: "" }, ["Write a prompt."]],
    [{ prompt: "Hello" }, ["The prompt names no column, so that every request would be the same."]],
    [{ columns: [COLUMNS[0]!, { ...COLUMNS[0]!, name: "capital" }] }, ["Two columns of the answers have the same name."]],
    [{ columns: [{ name: " ", type: "choice", choices: " , " } as const] }, ["A column of the answers has no name.", "A column of the answers has no choices."]],
    [{ endpoint: "/v1/embeddings" as const, columns: [{ name: "", type: "string", choices: "" } as const] }, []],
  ])("says what is wrong with %j", (changes, problems) => {
    expect(problemsOf({ ...TEMPLATE, ...changes }, ["country"])).toEqual(problems);
  });
});

describe("a row becomes a request", () => {
  const cases: [Partial<Template>, unknown][] = [
    [{}, { messages: [{ role: "user", content: "Name the capital of Peru." }] }],
    [
      { system: "Be brief, {{id}}.", limit: 9 },
      {
        messages: [
          { role: "system", content: "Be brief, 7." },
          { role: "user", content: "Name the capital of Peru." },
        ],
        max_completion_tokens: 9,
      },
    ],
    [
      { endpoint: "/v1/responses", system: "Be brief.", limit: 9 },
      { instructions: "Be brief.", input: "Name the capital of Peru.", max_output_tokens: 9 },
    ],
    [
      { columns: COLUMNS, temperature: 0 },
      {
        messages: [{ role: "user", content: "Name the capital of Peru." }],
        response_format: { type: "json_schema", json_schema: { name: "row", strict: true, schema: SCHEMA } },
        temperature: 0,
      },
    ],
    [
      { endpoint: "/v1/responses", columns: COLUMNS },
      { input: "Name the capital of Peru.", text: { format: { type: "json_schema", name: "row", strict: true, schema: SCHEMA } } },
    ],
    [{ endpoint: "/v1/completions", limit: 9 }, { prompt: "Name the capital of Peru.", max_tokens: 9 }],
    [{ endpoint: "/v1/embeddings", limit: 9 }, { input: "Name the capital of Peru." }],
  ];

  it.each(cases)("with %j", (changes, body) => {
    const template = { ...TEMPLATE, ...changes };
    const line = JSON.parse(liner(template, ["id", "country"])(["7", "Peru"], 1)) as unknown;
    expect(line).toEqual({
      custom_id: "row-1",
      row: { id: "7", country: "Peru" },
      method: "POST",
      url: template.endpoint,
      body: { model: "m", ...(body as object) },
    });
  });

  it("holds the row, of columns with the same name the first", () => {
    const line = liner(TEMPLATE, ["country", "country", "__proto__", "none"])(["Peru", "Chad", "x"], 1);
    expect(line).toContain('"row":{"country":"Peru","__proto__":"x","none":""}');
  });

  it("takes its custom_id from a column, where that has a value", () => {
    const line = liner({ ...TEMPLATE, idColumn: "id" }, ["id", "country"]);
    expect([line(["7", "Peru"], 1), line(["", "Peru"], 2)].map((text) => (JSON.parse(text) as { custom_id: string }).custom_id)).toEqual([
      "7",
      "row-2",
    ]);
  });
});

describe("a table", () => {
  it("shows its columns and first rows", async () => {
    const file = new Blob(["country , id\nPeru,1\nJapan,2\nChad,3\n"]);
    expect(await readHead(file, 2)).toEqual({ columns: ["country", "id"], rows: [["Peru", "1"], ["Japan", "2"]], isGarbled: false });
    expect((await readHead(new Blob(["a\n", new Uint8Array([0xe9])]), 3)).isGarbled).toBe(true);
    await expect(readHead(new Blob([""]), 3)).rejects.toThrow("empty");
    await expect(readHead(new Blob(["a,b\n"]), 3)).rejects.toThrow("no row");
  });

  it("of 50,000 rows becomes as many requests", async () => {
    const rows = Array.from({ length: 50_000 }, (_, n) => `"Land ${n},\nthe ""${n}"""\n`);
    const counts: number[] = [];

    const made = await makeRequests(new Blob(["country\n", rows.join("")]), TEMPLATE, (count) => counts.push(count));
    const lines = await linesOf(made.content);

    expect([made.count, made.unevenRow, lines.length, counts.at(-1)]).toEqual([50_000, null, 50_000, 50_000]);
    expect(lines.at(-1)).toMatchObject({
      custom_id: "row-50000",
      body: { messages: [{ content: 'Name the capital of Land 49999,\nthe "49999".' }] },
    });
  }, 60_000);

  it("says which row has too many or too few fields", async () => {
    const made = await makeRequests(new Blob(["country,id\nPeru,1\nChad\nMali,1,2\n"]), TEMPLATE, () => undefined);
    expect([made.count, made.unevenRow]).toEqual([3, 2]);
  });
});

describe("the endpoint of a file of requests", () => {
  it.each([
    ['\uFEFF\n{"url": "/v1/embeddings"}\n', "/v1/embeddings"],
    ['{"url": "/v1/other"}', null],
    ["no JSON", null],
    ["", null],
  ])("of %j is %j", async (text, endpoint) => expect(await endpointOf(new Blob([text]))).toBe(endpoint));
});
