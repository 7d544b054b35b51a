import { expect, it } from "vitest";

import { pipelinesSearch } from "@/pages/pipelines/address";
import { namedFiles, readDefinition, readEntries, replaceFiles } from "@/pages/pipelines/definition";
import { isLive, mayResume, stepCounts, STATUSES, type Step } from "@/pages/pipelines/pipelines";

const YAML = `
name: support
steps:
  - name: train
    kind: fine_tuning
    request: {model: m, training_file: {file: rows.jsonl}}
  - name: check
    kind: eval_run
    request:
      data_source:
        source: {type: file_id, id: {file: rows.jsonl}}
        input_messages: {template: [{role: user, content: "{{ item.question }}"}]}
      metadata: {week: 2026-12-01, file: notes.txt}
`;

it("YAML and JSON define the same pipeline, in which a date is a text", () => {
  const definition = readDefinition(YAML);
  expect(readDefinition(JSON.stringify(definition))).toEqual(definition);
  expect(definition.steps[1]).toMatchObject({ request: { metadata: { week: "2026-12-01" } } });
});

it.each([
  ["", "no list of steps"],
  ["steps: []", "no list of steps"],
  ["steps: [train]", "no list of steps"],
  ["- name: train", "no list of steps"],
  ["steps:\n  - name: [", "Line 3 is neither YAML nor JSON"],
  ["steps: &all [{name: *all}]", "cannot be written as JSON"],
])("the text %o is refused in words", (text, words) => {
  expect(() => readDefinition(text)).toThrow(words);
});

it("fields are read from YAML and JSON, and nothing else is taken for them", () => {
  expect([readEntries("model: m"), readEntries('{"model": "m"}')]).toEqual([{ model: "m" }, { model: "m" }]);
  expect(() => readEntries("- model")).toThrow("There are no fields");
});

it("a file is named once for each purpose, and its id takes the place of its path", () => {
  const definition = readDefinition(YAML);
  expect(namedFiles(definition)).toEqual([
    { path: "rows.jsonl", purpose: "fine-tune" },
    { path: "rows.jsonl", purpose: "evals" },
  ]);
  const filled = replaceFiles(definition, ({ purpose }) => `file-${purpose}`);
  expect(filled).toMatchObject({
    name: "support",
    steps: [
      { request: { training_file: "file-fine-tune" } },
      { request: { data_source: { source: { type: "file_id", id: "file-evals" } }, metadata: { file: "notes.txt" } } },
    ],
  });
  expect(definition.steps[0]).toMatchObject({ request: { training_file: { file: "rows.jsonl" } } });
});

it("only a pipeline that has ended without completing can be resumed", () => {
  expect(STATUSES.filter((status) => mayResume({ status }))).toEqual(["failed", "cancelled"]);
  expect(STATUSES.filter((status) => isLive({ status }))).toEqual(["in_progress", "cancelling"]);
});

it("the steps of a pipeline are counted by what became of them", () => {
  const steps = (["completed", "failed", "skipped", "completed"] as const).map((status) => ({ status }) as Step);
  expect(stepCounts({ steps })).toEqual({ total: 4, completed: 2, failed: 1 });
});

it("the address of the list names a status, and nothing else", () => {
  expect([pipelinesSearch({ status: "failed" }), pipelinesSearch({ status: "broken" })]).toEqual([{ status: "failed" }, { status: undefined }]);
});
