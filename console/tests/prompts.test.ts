import { describe, expect, it } from "vitest";

import { reportOf } from "@/pages/files/report";
import { differenceOf, linesOf } from "@/pages/prompts/difference";
import { EMPTY_VERSION, formOf, isReadable, readValue, referenceTo, usedVariables, versionBody, writeValue, type Variable, type Version } from "@/pages/prompts/prompts";

const VARIABLES: readonly Variable[] = [
  { name: "name", type: "string", required: true, default: null },
  { name: "count", type: "number", required: false, default: 3 },
  { name: "picture", type: "image", required: true, default: null },
];
const VERSION = {
  object: "prompt.version",
  prompt_id: "pmpt_1",
  version: "2",
  created_at: 1,
  created_by: null,
  hash: "0",
  model: "m",
  instructions: "Greet {{name}} {{ count }} times.\n",
  messages: [
    { role: "user", content: [{ type: "input_text", text: "{{picture}}" }] },
    { role: "assistant", content: "Yes." },
  ],
  tools: [{ type: "function", name: "f" }],
  tool_choice: "auto",
  text: null,
  parameters: { temperature: 0, reasoning: { effort: "low" } },
  variables: VARIABLES as unknown as Version["variables"],
} satisfies Version;

it("a version goes through the form unchanged", () => {
  const body = versionBody(formOf(VERSION));
  const [name, count, picture] = VARIABLES;
  expect(body).toEqual({
    model: "m",
    instructions: VERSION.instructions,
    messages: VERSION.messages,
    tools: VERSION.tools,
    tool_choice: "auto",
    parameters: VERSION.parameters,
    variables: [{ ...name, default: undefined }, count, { ...picture, default: undefined }],
  });
});

it("an empty form sends no content", () => {
  const body = JSON.parse(JSON.stringify(versionBody(EMPTY_VERSION))) as object;
  expect(body).toEqual({ messages: [], parameters: {}, variables: [] });
});

it("the variables of a form are those that its texts use", () => {
  const form = { ...formOf(VERSION), instructions: "{{ new_one }} {{count}} {{new_one}} {{1}} {{ a b }}", messages: [] };
  expect(usedVariables(form)).toEqual([
    { name: "new_one", type: "string", required: true, default: "" },
    { name: "count", type: "number", required: false, default: "3" },
  ]);
});

it("a form with a text that is not JSON cannot be sent", () => {
  expect(isReadable({ ...EMPTY_VERSION, json: { ...EMPTY_VERSION.json, tools: "[" } })).toBe(false);
  expect(isReadable({ ...EMPTY_VERSION, messages: [{ role: "user", isParts: true, text: "{" }] })).toBe(false);
  expect(isReadable({ ...EMPTY_VERSION, messages: [{ role: "user", isParts: false, text: "{" }] })).toBe(true);
});

it.each([
  ["string", "7", "7"],
  ["number", "7", 7],
  ["boolean", "false", false],
  ["json", '{"a":[1]}', { a: [1] }],
  ["image", "file-1", { type: "input_image", file_id: "file-1" }],
  ["file", "https://a/b.pdf", { type: "input_file", file_url: "https://a/b.pdf" }],
] as const)("a %s is read from the text %s, and written as it", (type, text, value) => {
  expect(readValue(type, text)).toEqual(value);
  expect(writeValue(type, value)).toBe(text);
});

it("a request names the values that are not empty", () => {
  expect(referenceTo("pmpt_1", "production", VARIABLES, { name: "Ada", count: "", picture: "" })).toEqual({
    id: "pmpt_1",
    version: "production",
    variables: { name: "Ada" },
  });
  expect(referenceTo("pmpt_1", undefined, [], {})).toEqual({ id: "pmpt_1" });
});

const shown = (before: string, after: string) =>
  linesOf(before, after).map(({ kind, parts }) => `${kind} ${parts.map(({ text, isChanged }) => (isChanged ? `<${text}>` : text)).join("")}`);

describe("a difference", () => {
  it("marks the words that changed in a line", () => {
    expect(shown("a\n\nBe kind.\nb", "a\n\nBe brief.\nb")).toEqual(["same a", "same ", "removed Be <kind>.", "added Be <brief>.", "same b"]);
  });

  it("shows a text that came or went as lines without marks", () => {
    expect(shown("", "a\nb")).toEqual(["added a", "added b"]);
    expect(shown("a\nb", "a")).toEqual(["same a", "removed b"]);
  });

  it("of long texts without a common word ends", () => {
    const text = (word: string) => Array.from({ length: 20_000 }, (_, n) => `${word}${n}`).join("\n");
    expect(linesOf(text("a"), text("b"))).toHaveLength(40_000);
  });

  it("has the parts that changed, without what is far from a change", () => {
    const lines = Array.from({ length: 9 }, (_, n) => `line ${n}`);
    const before = { ...VERSION, instructions: lines.join("\n") };
    const [instructions, ...others] = differenceOf(before, { ...before, model: "m", instructions: [...lines, "last"].join("\n") });
    expect(others).toEqual([]);
    expect(instructions?.title).toBe("Instructions");
    expect(instructions?.lines.map((line) => line?.kind ?? null)).toEqual([null, "same", "same", "same", "added"]);
  });

  it("does not depend on the order of the fields of a variable", () => {
    const [{ name, type, ...others }] = VARIABLES as [Variable];
    const variables = [{ ...others, type, name }] as unknown as Version["variables"];
    expect(differenceOf({ ...VERSION, variables: VERSION.variables.slice(0, 1) }, { ...VERSION, variables })).toEqual([]);
  });
});

it.each(["", "null", "[]", '{"object": "list", "rows": []}', '{"object": "migration.report"}'])("the text %j is no report of a migration", (text) => {
  expect(reportOf(text)).toBeNull();
});
