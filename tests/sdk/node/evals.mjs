// Evals: the checks of `../evals_suite.py`, in its order. Run by `suite.mjs`.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";

import OpenAI from "openai";

import { MODEL, RAW, all, check, client, factsOf, fresh, ids, raised, same, small, until } from "./checking.mjs";

const { evals } = client;
const { runs } = evals;
const SCHEMA = { type: "object", properties: { question: { type: "string" }, answer: { type: "string" } } };
const SAME = {
  type: "string_check", name: "same", input: "{{ sample.output_text }}", operation: "eq", reference: "{{ item.answer }}",
};
/** The fake model is no judge: what it answers is no score. */
const JUDGE = {
  type: "score_model", name: "good", model: MODEL, range: [0, 1], pass_threshold: 0.5,
  input: [{ role: "user", content: "Is '{{ sample.output_text }}' good?" }],
};
const CUSTOM = { type: "custom", item_schema: SCHEMA, include_sample_schema: true };
const TEMPLATE = { type: "template", template: [{ role: "user", content: "{{ item.question }}" }] };
const INVALID = [400, "invalid_request_error"];

const echo = (question) => `echo ${createHash("sha256").update(question).digest("hex").slice(0, 16)}`;

/** Items; what the model answers to a question that ends with `?` is right. */
const rows = (questions) =>
  questions.map((question) => ({ item: { question, answer: question.endsWith("?") ? echo(question) : "no" } }));

const newEval = (criteria = [SAME], more = {}) =>
  evals.create({ data_source_config: CUSTOM, testing_criteria: criteria, ...more });

function newRun(evalId, questions, more = {}) {
  const source = { type: "file_content", content: rows(questions) };
  const data_source = { type: "completions", source, model: MODEL, input_messages: TEMPLATE, ...more };
  return runs.create(evalId, { name: "r", data_source, metadata: { k: "v" } });
}

const runEnded = (run) =>
  until(async () => {
    const current = await runs.retrieve(run.id, { eval_id: run.eval_id });
    return !["queued", "in_progress"].includes(current.status) && current;
  }, `the end of ${run.id}`);

const countsOf = ({ result_counts: counts }) => [counts.total, counts.passed, counts.failed, counts.errored];

check("an eval is created, retrieved, renamed, listed and deleted", async () => {
  const team = fresh("team");
  const made = await newEval([SAME], { name: "first", metadata: { team } });
  const other = await newEval([SAME], { name: "second", metadata: { team } });

  same([made.object, made.name, made.metadata], ["eval", "first", { team }]);
  same([made.data_source_config.type, made.testing_criteria[0].name], ["custom", "same"]);
  same(made.data_source_config.schema.properties.item, SCHEMA);
  same(await evals.retrieve(made.id), made);
  const renamed = await evals.update(made.id, { name: "third", metadata: { team: "b" } });
  same([renamed.name, renamed.metadata], ["third", { team: "b" }]);
  same(ids(await all(evals.list({ limit: 1 }))), [made.id, other.id]);
  same(ids(await all(evals.list({ limit: 1, order: "desc", order_by: "updated_at" }))), [made.id, other.id]);
  const deleted = await evals.delete(made.id);
  same([deleted.object, deleted.deleted, deleted.eval_id], ["eval.deleted", true, made.id]);
  await raised(OpenAI.NotFoundError, () => evals.retrieve(made.id));
});

check("a run of an eval is graded item by item", async () => {
  const made = await newEval([SAME], { name: "e" });
  const run = await newRun(made.id, ["a?", "b?", "c"]);
  same([run.object, run.eval_id, run.name, run.model], ["eval.run", made.id, "r", MODEL]);
  same([run.metadata, run.error, run.per_model_usage], [{ k: "v" }, null, null]);

  const done = await runEnded(run);

  same([done.status, countsOf(done)], ["completed", [3, 2, 1, 0]]);
  assert.ok(done.report_url.includes(made.id), done.report_url);
  const [criterion] = done.per_testing_criteria_results;
  same([criterion.testing_criteria, criterion.passed, criterion.failed], ["same", 2, 1]);
  const [usage] = done.per_model_usage;
  same([usage.model_name, usage.invocation_count], [MODEL, 3]);
  same([done.data_source.type, done.data_source.model], ["completions", MODEL]);
  const where = { eval_id: made.id };
  const listed = await all(runs.outputItems.list(run.id, { ...where, limit: 1 }));
  same(listed.map((row) => [row.datasource_item_id, row.status]), [[0, "pass"], [1, "pass"], [2, "fail"]]);
  const failed = await all(runs.outputItems.list(run.id, { ...where, status: "fail", order: "desc" }));
  same(ids(failed), [listed[2].id]);
  const item = await runs.outputItems.retrieve(listed[0].id, { ...where, run_id: run.id });
  same([item.object, item.run_id, item.results[0].name], ["eval.run.output_item", run.id, "same"]);
  same([item.results[0].passed, item.results[0].score], [true, 1]);
  same([item.sample.input[0].content, item.sample.output[0].content], ["a?", echo("a?")]);
  same([item.sample.model, item.sample.finish_reason, item.sample.error], [MODEL, "stop", null]);
});

check("runs of an eval are listed by status, cancelled and deleted", async () => {
  const made = await newEval([SAME], { name: "e" });
  const where = { eval_id: made.id };
  const done = await runEnded(await newRun(made.id, ["a?"]));
  const slow = await newRun(made.id, ["!slow"]);

  for (let n = 0; n < 2; n++) same((await runs.cancel(slow.id, where)).status, "canceled");
  same(ids(await all(runs.list(made.id, { limit: 1 }))), [done.id, slow.id]);
  same(ids(await all(runs.list(made.id, { status: "completed" }))), [done.id]);
  const error = await raised(OpenAI.ConflictError, () => runs.cancel(done.id, where));
  same(factsOf(error), [409, "invalid_request_error", "invalid_state", null]);
  const deleted = await runs.delete(done.id, where);
  same([deleted.object, deleted.deleted, deleted.run_id], ["eval.run.deleted", true, done.id]);
  await raised(OpenAI.NotFoundError, () => runs.retrieve(done.id, where));
});

check("a run reads a file, and asks for responses", async () => {
  const lines = rows(["a?", "b"]).map((row) => `${JSON.stringify(row)}\n`).join("");
  const file = await client.files.create({ file: await small("items.jsonl", lines), purpose: "evals" });
  const made = await newEval([SAME], { name: "e" });

  const source = { type: "file_id", id: file.id };
  const done = await runEnded(await newRun(made.id, [], { type: "responses", source }));

  same([done.status, done.data_source.type, countsOf(done)[0]], ["completed", "responses", 2]);
});

check("stored chats are evaluated as they were answered, and asked again", async () => {
  const team = fresh("team");
  for (const content of ["a?", "b?"]) {
    await client.chat.completions.create({
      model: MODEL, messages: [{ role: "user", content }], store: true, metadata: { team },
    });
  }
  const data_source_config = { type: "logs", metadata: { team } };
  const made = await newEval([{ ...SAME, reference: echo("a?") }], { data_source_config, name: "e" });
  const stored = { type: "completions", source: { type: "stored_completions", limit: 10 } };
  const again = { model: MODEL, input_messages: { type: "item_reference", item_reference: "item.input" } };

  const asAnswered = await runEnded(await runs.create(made.id, { data_source: stored }));
  const askedAgain = await runEnded(await runs.create(made.id, { data_source: { ...stored, ...again } }));

  same([countsOf(asAnswered), asAnswered.per_model_usage], [[2, 1, 1, 0], []]);
  same([countsOf(askedAgain), askedAgain.model], [[2, 1, 1, 0], MODEL]);
});

check("an item whose judge answers nonsense has errored, and a retry asks again", async () => {
  const made = await newEval([SAME, JUDGE], { name: "e" });
  const run = await runEnded(await newRun(made.id, ["a?"]));

  RAW.add("evals.runs.retry");
  const job = await client.post(`/jobs/${run.id}/retry`, { body: {} });
  const again = await runEnded(await runs.retrieve(job.id, { eval_id: made.id }));

  same([run.status, countsOf(run)], ["completed", [1, 0, 0, 1]]);
  same([again.status, countsOf(again)], ["completed", [1, 0, 0, 1]]);
  assert.ok(again.per_model_usage.every((usage) => usage.invocation_count === 1));
  const [item] = await all(runs.outputItems.list(again.id, { eval_id: made.id }));
  same([item.status, item.results[1].passed, item.results[1].score], ["error", false, null]);
});

check("an eval and a run that cannot be are BadRequestErrors", async () => {
  let error = await raised(OpenAI.BadRequestError, () => newEval([{ ...SAME, type: "nothing" }]));
  same(factsOf(error), [...INVALID, "invalid_value", "testing_criteria[0].type"]);
  const made = await newEval([SAME], { name: "e" });
  const source = { type: "file_id", id: "file-x" };
  error = await raised(OpenAI.BadRequestError, () => newRun(made.id, [], { source }));
  same(factsOf(error), [...INVALID, "file_not_found", "data_source.source.id"]);
  await raised(OpenAI.NotFoundError, () => runs.retrieve("evalrun_none", { eval_id: made.id }));
});
