// Fine-tuning: the checks of `../tuning.py`, in its order. Run by `suite.mjs`, after its own.

import assert from "node:assert/strict";

import OpenAI from "openai";

import { FACTS, all, bytesOf, check, client, factsOf, ids, pagesOf, raised, same, small } from "./checking.mjs";

const { base: BASE, job: TUNED, model: MODEL, other_project: OTHER } = FACTS.tuned;
const ROWS = Array.from({ length: 12 }, (_, n) => {
  const messages = [{ role: "user", content: `${n}?` }, { role: "assistant", content: `${n}.` }];
  return `${JSON.stringify({ messages })}\n`;
}).join("");
const WANDB = { project: "p", name: "run", tags: ["a"] };
const HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy";
const SUPERVISED = { type: "supervised", supervised: { hyperparameters: { n_epochs: 2 } } };

const { jobs } = client.fineTuning;
/** This SDK asks for an admin key where permissions are concerned; any key of the project is one. */
const admin = new OpenAI({ adminAPIKey: FACTS.key, baseURL: `${FACTS.url}/v1` });

const trainingFile = async () =>
  (await client.files.create({ file: await small("rows.jsonl", ROWS), purpose: "fine-tune" })).id;

/** A job that nobody trains. */
const waiting = async (more = {}) =>
  jobs.create({ model: BASE, training_file: await trainingFile(), method: SUPERVISED, ...more });

check("a fine-tuning job is created, retrieved and listed", async () => {
  const integrations = [{ type: "wandb", wandb: WANDB }];
  const made = await waiting({ suffix: "s", seed: 7, metadata: { team: "a" }, integrations });
  const other = await waiting({ metadata: { team: "b" } });

  same([made.object, made.status, made.model, made.seed], ["fine_tuning.job", "validating_files", BASE, 7]);
  same([made.method.type, made.method.supervised.hyperparameters.n_epochs], ["supervised", 2]);
  same([made.hyperparameters.n_epochs, made.hyperparameters.batch_size], [2, "auto"]);
  same([made.error, made.fine_tuned_model, made.finished_at, made.result_files], [null, null, null, []]);
  same([made.metadata, made.trained_tokens, made.validation_file], [{ team: "a" }, null, null]);
  const [integration] = made.integrations;
  same([integration.type, integration.wandb.project, integration.wandb.tags], ["wandb", "p", ["a"]]);
  same({ ...(await jobs.retrieve(made.id)), waiting_for: null }, { ...made, waiting_for: null });
  same(ids(await all(jobs.list({ limit: 1, metadata: { team: "a" } }))), [made.id]);
  same(await pagesOf(jobs.list({ limit: 1 })), [[other.id], [made.id], [TUNED]]);
});

check("a fine-tuning job learns preferences", async () => {
  const made = await waiting({ method: { type: "dpo", dpo: { hyperparameters: { beta: 0.2, n_epochs: 1 } } } });

  same([made.method.type, made.method.dpo.hyperparameters.beta], ["dpo", 0.2]);
});

check("a fine-tuning job is paused, resumed and cancelled", async () => {
  const made = await waiting();

  for (let n = 0; n < 2; n++) same((await jobs.pause(made.id)).status, "paused");
  same((await jobs.resume(made.id)).status, "validating_files");
  for (let n = 0; n < 2; n++) same((await jobs.cancel(made.id)).status, "cancelled");
  const error = await raised(OpenAI.ConflictError, () => jobs.pause(made.id));
  same(factsOf(error), [409, "invalid_request_error", "invalid_state", null]);
});

check("a trained job has events, checkpoints and result files", async () => {
  const job = await jobs.retrieve(TUNED);
  const events = await all(jobs.listEvents(job.id, { limit: 1 }));
  const checkpoints = await all(jobs.checkpoints.list(job.id, { limit: 1 }));

  same([job.status, job.fine_tuned_model, job.trained_tokens], ["succeeded", MODEL, 240]);
  same([job.hyperparameters.n_epochs, job.hyperparameters.batch_size], [2, 4]);
  assert.ok(job.finished_at >= job.created_at);
  const metrics = events.filter((event) => event.type === "metrics");
  same(metrics.map((event) => event.data.step), [2, 1]);
  assert.ok(metrics.every((event) => event.object === "fine_tuning.job.event" && event.level === "info"));
  same(new Set(ids(events)).size, events.length);
  same(checkpoints.map((one) => one.step_number), [2, 1]);
  same(checkpoints[0].fine_tuned_model_checkpoint, `${MODEL}:ckpt-step-2`);
  same([checkpoints[0].fine_tuning_job_id, checkpoints[0].metrics.train_loss], [job.id, 1]);
  const [file] = job.result_files;
  same((await bytesOf(file)).toString().split("\n")[0], HEADER);
  same((await client.files.retrieve(file)).purpose, "fine-tune-results");
});

check("a checkpoint is permitted to another project", async () => {
  const name = `${MODEL}:ckpt-step-1`;
  const { permissions } = admin.fineTuning.checkpoints;

  const [granted] = await all(permissions.create(name, { project_ids: [OTHER] }));
  same([granted.object, granted.project_id], ["checkpoint.permission", OTHER]);
  const listed = await permissions.retrieve(name, { order: "ascending", project_id: OTHER });
  same(ids(listed.data), [granted.id]);
  const deleted = await permissions.delete(granted.id, { fine_tuned_model_checkpoint: name });
  same([deleted.id, deleted.deleted], [granted.id, true]);
  same((await permissions.retrieve(name)).data, []);
});

check("a tuned model is listed, retrieved and deleted, and holds its training file", async () => {
  const { training_file: file } = await jobs.retrieve(TUNED);

  assert.ok(ids(await all(client.models.list())).includes(MODEL));
  same((await client.models.retrieve(MODEL)).id, MODEL);
  same((await raised(OpenAI.ConflictError, () => client.files.delete(file))).code, "file_in_use");
  same((await client.models.delete(MODEL)).deleted, true);
  await raised(OpenAI.NotFoundError, () => client.models.retrieve(MODEL));
  same((await client.files.delete(file)).deleted, true);
});

check("a fine-tuning job that cannot be is a BadRequestError", async () => {
  const training_file = await trainingFile();
  const refused = (fields) => raised(OpenAI.BadRequestError, () => jobs.create({ model: BASE, training_file, ...fields }));

  const invalid = [400, "invalid_request_error"];
  same(factsOf(await refused({ method: { type: "reinforcement" } })), [...invalid, "invalid_value", "method.type"]);
  same(factsOf(await refused({ model: "gpt-4o-mini" })), [...invalid, "model_not_available", "model"]);
  same(factsOf(await refused({ training_file: "file-x" })), [...invalid, "file_not_found", "training_file"]);
  await raised(OpenAI.NotFoundError, () => jobs.retrieve("ftjob-none"));
});
