// What the SDK for node does with a running server, one line of JSON a check: the checks of `../suite.py`, in its order.
//
//     node suite.mjs '{"url": …}'         the facts are those of tests.sdk.deployment
//
// A line is `{"check", "ok", "detail", "raw"}`. `raw` names what this version has no method for, and was done in parts.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

import OpenAI, { toFile } from "openai";

import {
  CHECKS, FACTS, MODEL, RAW, all, bytesOf, check, client, ended, factsOf, fresh, ids, inputFile, linesOf, pagesOf, raised,
  same, small, through, told, until,
} from "./checking.mjs";

const CHAT = "/v1/chat/completions";
const EVENT_TYPES = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"];
const DATA = Buffer.from('{"custom_id":"1"}\n'.repeat(50_000));
const PIECES = Array.from({ length: 12 }, (_, n) => Buffer.alloc(20_000 + n, 65 + n));
const SENT = [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4];
const LISTED = [4, 9, 0, 11, 6, 1, 8, 3, 10, 2, 7, 5];

function chat(custom_id, prompt, url = CHAT) {
  const body = { model: MODEL, messages: [{ role: "user", content: prompt }] };
  return { custom_id, method: "POST", url, body };
}

async function submit(lines, more = {}) {
  const input_file_id = await inputFile(lines);
  return client.batches.create({ input_file_id, endpoint: CHAT, completion_window: "24h", ...more });
}

/** The batches that carry this mark. */
async function batchesOf(mark) {
  return ids((await all(client.batches.list({ limit: 100 }))).filter((batch) => batch.metadata?.mark === mark));
}

const endpointAt = (name, ...event_types) =>
  client.webhooks.create({ name, url: `${FACTS.receiver}/${name}`, event_types });

/** The body and the headers of the first request that came. */
async function delivery(name) {
  const inbox = await until(async () => {
    const got = await told(`inbox/${name}`);
    return got.length && got;
  }, "a delivery");
  return [inbox[0].body, inbox[0].headers];
}

check("a file is created, retrieved and read", async () => {
  const file = await client.files.create({
    file: await toFile(DATA, "data.jsonl"),
    purpose: "user_data",
    expires_after: { anchor: "created_at", seconds: 3600 },
  });

  same([file.object, file.filename, file.bytes, file.purpose], ["file", "data.jsonl", DATA.length, "user_data"]);
  same(file.expires_at, file.created_at + 3600);
  same(await client.files.retrieve(file.id), file);
  same((await client.files.waitForProcessing(file.id)).status, "processed");
  assert.ok(DATA.equals(await bytesOf(file.id)));
});

check("a file's content is streamed", async () => {
  const file = await client.files.create({ file: await toFile(DATA, "data.jsonl"), purpose: "user_data" });

  const answer = await client.files.content(file.id);
  same(Number(answer.headers.get("content-length")), DATA.length);
  const pieces = [];
  for await (const piece of answer.body) pieces.push(piece);

  assert.ok(pieces.length > 1, "it came in one piece");
  assert.ok(DATA.equals(Buffer.concat(pieces)));
});

check("files are listed page by page", async () => {
  const made = [];
  for (let n = 0; n < 5; n++) made.push((await client.files.create({ file: await small("a"), purpose: "evals" })).id);

  const pages = await pagesOf(client.files.list({ purpose: "evals", limit: 2 }));
  same(pages, [[made[4], made[3]], [made[2], made[1]], [made[0]]]);
  same(ids(await all(client.files.list({ purpose: "evals", limit: 2, order: "asc" }))), made);
  same(ids(await all(client.files.list({ purpose: "evals", after: made[3] }))), made.slice(0, 3).reverse());
});

check("a deleted file is gone", async () => {
  const file = await client.files.create({ file: await small("a"), purpose: "vision" });

  same(ids(await all(client.files.list({ purpose: "vision" }))), [file.id]);
  same((await client.files.delete(file.id)).deleted, true);
  same(await all(client.files.list({ purpose: "vision" })), []);
  for (const call of ["retrieve", "content", "delete"])
    await raised(OpenAI.NotFoundError, () => client.files[call](file.id));
});

check("parts sent in any order are put together in the order that is listed", async () => {
  const bytes = PIECES.reduce((sum, piece) => sum + piece.length, 0);
  const made = { bytes, filename: "a.txt", mime_type: "text/plain", purpose: "user_data" };
  const upload = await client.uploads.create(made);
  same([upload.object, upload.status, upload.bytes], ["upload", "pending", bytes]);
  const parts = [];
  for (const n of SENT) {
    parts[n] = await client.uploads.parts.create(upload.id, { data: await toFile(PIECES[n], "part") });
    same([parts[n].object, parts[n].upload_id], ["upload.part", upload.id]);
  }

  const some = await raised(OpenAI.BadRequestError, () =>
    client.uploads.complete(upload.id, { part_ids: [parts[0].id] }),
  );
  same([some.status, some.type], [400, "invalid_request_error"]);
  const done = await client.uploads.complete(upload.id, { part_ids: LISTED.map((n) => parts[n].id) });

  same([done.status, done.file.filename, done.file.bytes], ["completed", "a.txt", bytes]);
  assert.ok(Buffer.concat(LISTED.map((n) => PIECES[n])).equals(await bytesOf(done.file.id)));
});

check("a file is uploaded in chunks", async () => {
  assert.equal(client.uploads.uploadFileChunked, undefined, "this version has the helper: use it");
  RAW.add("uploads.upload_file_chunked");
  const made = { bytes: DATA.length, filename: "large.jsonl", mime_type: "application/jsonl", purpose: "batch" };
  const upload = await client.uploads.create(made);
  const part_ids = [];
  for (let at = 0; at < DATA.length; at += 100_000) {
    const data = await toFile(DATA.subarray(at, at + 100_000), "part");
    part_ids.push((await client.uploads.parts.create(upload.id, { data })).id);
  }
  const md5 = createHash("md5").update(DATA).digest("hex");
  const done = await client.uploads.complete(upload.id, { part_ids, md5 });

  same([done.status, done.file.filename, done.file.purpose], ["completed", "large.jsonl", "batch"]);
  assert.ok(DATA.equals(await bytesOf(done.file.id)));
});

check("a cancelled upload takes no more parts", async () => {
  const made = { bytes: 1, filename: "a", mime_type: "text/plain", purpose: "batch" };
  const upload = await client.uploads.create(made);

  same((await client.uploads.cancel(upload.id)).status, "cancelled");
  const data = await small("part");
  await raised(OpenAI.ConflictError, () => client.uploads.parts.create(upload.id, { data }));
});

check("a batch runs to its output", async () => {
  const prompts = Array.from({ length: 40 }, (_, n) => [`c${n}`, `question ${n}`]);
  const made = await submit(
    prompts.map(([name, prompt]) => chat(name, prompt)),
    { metadata: { mark: "whole" }, output_expires_after: { anchor: "created_at", seconds: 7200 } },
  );
  same([made.object, made.status, made.endpoint, made.metadata], ["batch", "validating", CHAT, { mark: "whole" }]);

  const batch = await ended(made);
  same([batch.status, batch.errors, batch.error_file_id], ["completed", null, null]);
  same(batch.request_counts, { total: 40, completed: 40, failed: 0 });
  const times = ["created_at", "in_progress_at", "finalizing_at", "completed_at", "expires_at"].map((at) => batch[at]);
  same(times, times.toSorted((one, other) => one - other));

  const output = await linesOf(batch.output_file_id);
  for (const [name, prompt] of prompts) {
    const line = output.get(name);
    const wanted = `echo ${createHash("sha256").update(prompt).digest("hex").slice(0, 16)}`;
    same(line.response.body.choices[0].message.content, wanted);
    same([line.response.status_code, line.error], [200, null]);
  }
  same(output.size, prompts.length);
  const tokens = [...output.values()].reduce((sum, line) => sum + line.response.body.usage.total_tokens, 0);
  same([batch.usage.total_tokens, batch.usage.input_tokens + batch.usage.output_tokens], [tokens, tokens]);
  const file = await client.files.retrieve(batch.output_file_id);
  same([file.purpose, file.expires_at], ["batch_output", file.created_at + 7200]);
});

check("lines that fail are in the error file", async () => {
  const batch = await ended(await submit([chat("good", "fine"), chat("bad", "!500")]));

  same([batch.status, batch.request_counts], ["completed", { total: 2, completed: 1, failed: 1 }]);
  same([...(await linesOf(batch.output_file_id)).keys()], ["good"]);
  const errors = await linesOf(batch.error_file_id);
  same([...errors.keys()], ["bad"]);
  same([errors.get("bad").response.status_code, errors.get("bad").error], [500, null]);
});

check("a batch of a bad file says which line", async () => {
  const batch = await ended(await submit([chat("a", "x"), chat("b", "y", "/v1/embeddings")]));

  same([batch.status, batch.output_file_id], ["failed", null]);
  same(batch.errors.data.map((one) => [one.code, one.line, one.param]), [["invalid_url", 2, "url"]]);
});

check("more than 250 batches are listed", async () => {
  const reader = new OpenAI({ apiKey: FACTS.past_key, baseURL: `${FACTS.url}/v1` });
  const wanted = FACTS.past.toReversed();
  assert.ok(wanted.length > 250);

  const pages = await pagesOf(reader.batches.list({ limit: 100 }));
  same(pages.map((page) => page.length), [100, 100, wanted.length - 200]);
  same(pages.flat(), wanted);
  same(ids(await all(reader.batches.list())), wanted);
  same(ids(await all(reader.batches.list({ after: wanted[254] }))), wanted.slice(255));
  const mine = ids(await all(client.batches.list({ limit: 100 })));
  same(mine.filter((id) => wanted.includes(id)), []);
});

check("a cancelled batch keeps what is finished", async () => {
  const names = Array.from({ length: 80 }, (_, n) => `c${n}`); // ten shards of two seconds, two at once
  const made = await submit(names.map((name, n) => chat(name, n ? `!slow ${name}` : "quick")));
  await until(async () => (await client.batches.retrieve(made.id)).request_counts.completed > 0, "the first result");

  same((await client.batches.cancel(made.id)).status, "cancelling");
  const batch = await ended(made);

  same(batch.status, "cancelled");
  assert.ok(batch.cancelling_at <= batch.cancelled_at);
  const [output, errors] = [await linesOf(batch.output_file_id), await linesOf(batch.error_file_id)];
  same([...output.keys(), ...errors.keys()].sort(), names.toSorted());
  same([...new Set([...errors.values()].map((line) => line.error.code))], ["batch_cancelled"]);
  same((await client.batches.cancel(made.id)).status, "cancelled");
});

check("our own fields travel with the SDK's", async () => {
  const [name, secret] = [fresh("own"), `whsec_${Buffer.alloc(32).toString("base64")}`];
  const url = `${FACTS.receiver}/${name}`;
  const batch = await ended(await submit([chat("a", "x")], { priority: 5, webhook: { url, secret } }));

  const job = await client.get(`/jobs/${batch.id}`);
  same([job.id, job.priority, job.webhook], [batch.id, 5, { url }]);
  same((await client.webhooks.unwrap(...(await delivery(name)), secret)).data.id, batch.id);
});

check("webhook endpoints are managed", async () => {
  const name = fresh("managed");
  const made = [];
  for (let n = 0; n < 3; n++) made.push(await endpointAt(`${name}-${n}`, "batch.completed"));
  const first = made[0];

  same([first.object, first.name, first.event_types], ["webhook_endpoint", `${name}-0`, ["batch.completed"]]);
  assert.ok(first.signing_secret.startsWith("whsec_"), first.signing_secret);
  const shown = await client.webhooks.retrieve(first.id);
  same([shown.id, shown.url, shown.signing_secret], [first.id, `${FACTS.receiver}/${name}-0`, undefined]);
  const changes = { name: "other", event_types: ["batch.failed", "batch.expired"] };
  const changed = await client.webhooks.update(first.id, changes);
  same({ name: changed.name, event_types: changed.event_types }, changes);
  same((await client.webhooks.retrieve(first.id)).name, "other");
  const listed = ids(await all(client.webhooks.list({ limit: 1 })));
  same(listed.filter((id) => ids(made).includes(id)), ids(made).reverse());
  const types = (await client.webhooks.eventTypes.list()).data;
  same(EVENT_TYPES.filter((type) => !types.includes(type)), []);
  for (const one of made) {
    const gone = await client.webhooks.delete(one.id);
    same([gone.id, gone.deleted], [one.id, true]);
    await raised(OpenAI.NotFoundError, () => client.webhooks.retrieve(one.id));
  }
});

check("a test event is sent at once", async () => {
  const name = fresh("tested");
  const made = await endpointAt(name, "batch.failed");

  const result = await client.webhooks.test(made.id, { event_type: "batch.failed" });

  same([result.webhook_endpoint_id, result.status_code, result.success], [made.id, 200, true]);
  const event = await client.webhooks.unwrap(...(await delivery(name)), made.signing_secret);
  same([event.type, event.object], ["batch.failed", "event"]);
  await client.webhooks.delete(made.id);
});

check("a webhook's secret is rotated", async () => {
  const name = fresh("rotated");
  const made = await endpointAt(name, "batch.failed");

  const kept = await client.webhooks.rotateSecret(made.id, { keep_old_secret_active_for_24_hours: true });
  await client.webhooks.test(made.id, { event_type: "batch.failed" });
  const only = await client.webhooks.rotateSecret(made.id, { keep_old_secret_active_for_24_hours: false });
  await client.webhooks.test(made.id, { event_type: "batch.failed" });

  const [both, last] = (await told(`inbox/${name}`)).map((one) => [one.body, one.headers]);
  const [first, second, third] = [made, kept, only].map((one) => one.signing_secret);
  same(new Set([first, second, third]).size, 3);
  for (const secret of [first, second]) {
    same((await client.webhooks.unwrap(...both, secret)).type, "batch.failed");
    await raised(OpenAI.InvalidWebhookSignatureError, () => client.webhooks.unwrap(...last, secret));
  }
  same((await client.webhooks.unwrap(...last, third)).type, "batch.failed");
  await client.webhooks.delete(made.id);
});

check("the event of a batch is delivered and unwrapped", async () => {
  const name = fresh("told");
  const made = await endpointAt(name, "batch.completed");
  const batch = await ended(await submit([chat("a", "x")], { metadata: { mark: name } }));

  const [body, headers] = await delivery(name);
  const event = await client.webhooks.unwrap(body, headers, made.signing_secret);

  await client.webhooks.delete(made.id);
  same([event.object, event.type], ["event", "batch.completed"]);
  same(event.data.id, batch.id);
  assert.ok(event.id.startsWith("evt_"), event.id);
  same(await client.webhooks.verifySignature(body, headers, made.signing_secret), undefined);
});

check("a forged event is refused", async () => {
  const name = fresh("forged");
  const [made, other] = [await endpointAt(name, "batch.failed"), await endpointAt(`${name}-other`, "batch.failed")];
  await client.webhooks.test(made.id, { event_type: "batch.failed" });
  const [body, headers] = await delivery(name);
  const old = { ...headers, "webhook-timestamp": String(Number(headers["webhook-timestamp"]) - 301) };

  same((await client.webhooks.unwrap(body, headers, made.signing_secret)).type, "batch.failed");
  for (const forged of [
    [body.replace("batch.failed", "batch.completed"), headers, made.signing_secret],
    [body, { ...headers, "webhook-id": "wh_other" }, made.signing_secret],
    [body, headers, other.signing_secret],
    [body, old, made.signing_secret],
  ])
    await raised(OpenAI.InvalidWebhookSignatureError, () => client.webhooks.unwrap(...forged));
  for (const one of [made, other]) await client.webhooks.delete(one.id);
});

check("models are listed and retrieved", async () => {
  const listed = new Map((await all(client.models.list())).map((model) => [model.id, model]));

  for (const name of [MODEL, FACTS.alias]) {
    same(listed.get(name)?.object, "model");
    same(await client.models.retrieve(name), listed.get(name));
  }
  const error = await raised(OpenAI.NotFoundError, () => client.models.retrieve("acme/none"));
  same(factsOf(error), [404, "invalid_request_error", "model_not_found", "model"]);
});

check("an interactive client is answered, whole and as a stream", async () => {
  const asked = { model: MODEL, messages: [{ role: "user", content: "wait for it" }] };
  const whole = await client.chat.completions.create(asked);
  const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);

  const text = `echo ${createHash("sha256").update("wait for it").digest("hex").slice(0, 16)}`;
  same([whole.choices[0].message.content, whole.choices[0].finish_reason], [text, "stop"]);
  same(pieces.map((piece) => piece.choices[0]?.delta.content ?? "").join(""), text);
  same(pieces.at(-1).usage, whole.usage);
  const error = await raised(OpenAI.NotFoundError, () => client.chat.completions.create({ ...asked, model: "acme/none" }));
  same(factsOf(error), [404, "invalid_request_error", "model_not_found", "model"]);
});

check("a chat is stored, whole and as a stream", async () => {
  const asked = { model: MODEL, messages: [{ role: "user", content: "wait for it" }], store: true };
  const whole = await client.chat.completions.create({ ...asked, metadata: { mark: "stored" } });
  const pieces = [];
  for await (const piece of await client.chat.completions.create({
    ...asked, metadata: { mark: "stored" }, stream: true,
  })) {
    pieces.push(piece);
  }

  const made = [whole.id, pieces[0].id];
  const listed = [];
  for await (const one of client.chat.completions.list({ metadata: { mark: "stored" }, limit: 1 })) {
    listed.push(one);
  }
  same(listed.map((one) => one.id), made);
  same(new Set(listed.map((one) => one.choices[0].message.content)).size, 1);
  const backwards = await client.chat.completions.list({ model: MODEL, order: "desc" });
  same(backwards.data.map((one) => one.id), [...made].reverse());
  const texts = [];
  for await (const message of client.chat.completions.messages.list(whole.id, { limit: 1 })) {
    texts.push(message.content);
  }
  same(texts, ["wait for it"]);
  const changed = await client.chat.completions.update(whole.id, { metadata: { mark: "other" } });
  same(changed.metadata, { mark: "other" });
  same((await client.chat.completions.retrieve(whole.id)).metadata, { mark: "other" });
  for (const one of made) {
    same((await client.chat.completions.delete(one)).deleted, true);
  }
  const error = await raised(OpenAI.NotFoundError, () => client.chat.completions.retrieve(whole.id));
  same(factsOf(error), [404, "invalid_request_error", "not_found", "completion_id"]);
});

check("a response is answered, whole and as a stream, and kept", async () => {
  const first = await client.responses.create({ model: MODEL, input: "wait for it", metadata: { mark: "first" } });
  const events = [];
  for await (const event of await client.responses.create({ model: MODEL, input: "wait for it", stream: true })) {
    events.push(event);
  }

  const text = `echo ${createHash("sha256").update("wait for it").digest("hex").slice(0, 16)}`;
  same([first.status, first.output_text, first.metadata], ["completed", text, { mark: "first" }]);
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  same(deltas.map((event) => event.delta).join(""), text);
  same([events[0].type, events.at(-1).type], ["response.created", "response.completed"]);
  for (const made of [first, events.at(-1).response]) {
    same((await client.responses.retrieve(made.id)).output_text, text);
  }
  const second = await client.responses.create({ model: MODEL, input: "and on", previous_response_id: first.id });
  same(second.previous_response_id, first.id);
  const texts = [];
  for await (const item of client.responses.inputItems.list(second.id, { limit: 1, order: "asc" })) {
    texts.push(item.content[0].text);
  }
  same(texts, ["wait for it", text, "and on"]);
  await client.responses.delete(first.id);
  const error = await raised(OpenAI.NotFoundError, () => client.responses.retrieve(first.id));
  same(factsOf(error)[0], 404);
});

check("an input is counted before it is asked for", async () => {
  const first = await client.responses.create({ model: MODEL, input: "one two" });

  const counted = await client.responses.inputTokens.count({
    model: MODEL, input: "and on", previous_response_id: first.id,
  });
  const words = `one two ${first.output_text} and on`.split(" ");
  same({ ...counted }, { object: "response.input_tokens", input_tokens: words.length });
});

check("a conversation is compacted, and gone on from", async () => {
  const first = await client.responses.create({ model: MODEL, input: "one two" });

  const made = await client.responses.compact({ model: MODEL, input: "and on", previous_response_id: first.id });
  same(made.object, "response.compaction");
  same(made.output.map((item) => item.type), ["message", "message", "compaction"]);
  same(made.output.slice(0, 2).map((item) => item.content[0].text), ["one two", "and on"]);
  const said = await client.responses.create({ model: MODEL, input: [...made.output, { role: "user", content: "more" }] });
  same(said.status, "completed");
  const items = [];
  for await (const item of client.responses.inputItems.list(said.id, { order: "asc" })) items.push(item);
  same(items.map((item) => item.type), ["message", "message", "compaction", "message"]);
});

check("a conversation keeps what was said", async () => {
  const items = [{ type: "message", role: "user", content: "I say" }];
  const made = await client.conversations.create({ items, metadata: { mark: "talk" } });
  const said = await client.responses.create({ model: MODEL, input: "and more", conversation: made.id });

  same([made.object, made.metadata], ["conversation", { mark: "talk" }]);
  const found = [];
  for await (const item of client.conversations.items.list(made.id, { order: "asc", limit: 2 })) found.push(item);
  same(found.map((item) => item.content[0].text), ["I say", "and more", said.output_text]);
  same(said.output_text, `echo ${createHash("sha256").update("I say\nand more").digest("hex").slice(0, 16)}`);
  same((await client.conversations.items.delete(found[0].id, { conversation_id: made.id })).id, made.id);
  same((await client.conversations.delete(made.id)).deleted, true);
  same(factsOf(await raised(OpenAI.NotFoundError, () => client.conversations.retrieve(made.id)))[0], 404);
});

check("a response in the background is polled, and cancelled", async () => {
  let made = await client.responses.create({ model: MODEL, input: "take your time", background: true });
  const deadline = Date.now() + 30_000;
  while (["queued", "in_progress"].includes(made.status) && Date.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    made = await client.responses.retrieve(made.id);
  }
  const text = `echo ${createHash("sha256").update("take your time").digest("hex").slice(0, 16)}`;
  same([made.status, made.output_text], ["completed", text]);
  same((await client.responses.cancel(made.id)).status, "completed");
  const plain = await client.responses.create({ model: MODEL, input: "x" });
  const error = await raised(OpenAI.BadRequestError, () => client.responses.cancel(plain.id));
  same(factsOf(error)[0], 400);
});

check("embeddings are answered at once", async () => {
  const input = ["one", "two"];
  const made = await client.embeddings.create({ model: FACTS.embed_model, input }); // base64 on the wire
  const plain = await client.embeddings.create({ model: FACTS.embed_model, input, encoding_format: "float" });

  same(made.data.map((one) => one.index), [0, 1]);
  for (const [n, one] of made.data.entries()) {
    assert.ok(one.embedding.length > 4);
    assert.ok(one.embedding.every((value, at) => Math.abs(value - plain.data[n].embedding[at]) < 1e-6));
  }
  same(made.usage.prompt_tokens, made.usage.total_tokens);
});

check("400 is a BadRequestError", async () => {
  const error = await raised(OpenAI.BadRequestError, () =>
    client.batches.create({ input_file_id: "f", endpoint: "/v1/nothing", completion_window: "24h" }),
  );

  same(factsOf(error), [400, "invalid_request_error", "invalid_value", "endpoint"]);
  assert.ok(error.message.includes(CHAT), error.message);
  const file = await small("a");
  const nothing = await raised(OpenAI.BadRequestError, () => client.files.create({ file, purpose: "nonsense" }));
  same(factsOf(nothing), [400, "invalid_request_error", "invalid_value", "purpose"]);
});

check("401 is an AuthenticationError", async () => {
  const stranger = new OpenAI({ apiKey: "wrong", baseURL: `${FACTS.url}/v1` });
  const error = await raised(OpenAI.AuthenticationError, () => stranger.files.list());

  same(factsOf(error), [401, "invalid_request_error", "invalid_api_key", null]);
});

check("403 is a PermissionDeniedError", async () => {
  const error = await raised(OpenAI.PermissionDeniedError, () => client.models.delete(MODEL));

  same(factsOf(error), [403, "invalid_request_error", "model_not_deletable", null]);
});

check("404 is a NotFoundError", async () => {
  const batch = await raised(OpenAI.NotFoundError, () => client.batches.retrieve("batch_none"));
  same(factsOf(batch), [404, "invalid_request_error", "not_found", "batch_id"]);
  assert.ok(batch.message.includes("batch_none"), batch.message);
  const file = await raised(OpenAI.NotFoundError, () => client.files.retrieve(FACTS.past[0]));
  same(file.status, 404);
  const url = await raised(OpenAI.NotFoundError, () => client.get("/nothing"));
  same(factsOf(url), [404, "invalid_request_error", "unknown_url", null]);
});

check("409 is a ConflictError, and is not tried again", async () => {
  const [batch, name] = [await ended(await submit([chat("a", "x")])), fresh("conflict")];

  const error = await raised(OpenAI.ConflictError, () => through("plain", name).batches.cancel(batch.id));

  same(factsOf(error), [409, "invalid_request_error", "invalid_state", null]);
  assert.ok(error.message.includes("Cannot cancel a batch with status 'completed'"), error.message);
  same((await told(`seen/${name}`)).map((one) => one.status), [409]);
});

check("422 is an UnprocessableEntityError: one key, two bodies", async () => {
  const [key, input_file_id] = [fresh("key"), await inputFile([chat("a", "x")])];
  const create = (mark) =>
    client.batches.create(
      { input_file_id, endpoint: CHAT, completion_window: "24h", metadata: { mark } },
      { headers: { "Idempotency-Key": key } },
    );
  await create(key);

  const error = await raised(OpenAI.UnprocessableEntityError, () => create("other"));

  same(factsOf(error), [422, "invalid_request_error", "idempotency_key_mismatch", null]);
  same((await batchesOf(key)).length, 1);
});

check("413 is an APIStatusError", async () => {
  // The class that Python calls APIStatusError is APIError here.
  const body = { x: "y".repeat(5 << 20) };
  const error = await raised(OpenAI.APIError, () => client.post("/batches", { body }));

  same(factsOf(error), [413, "invalid_request_error", "request_too_large", null]);
});

check("429 is a RateLimitError, and says when to come again", async () => {
  const stranger = through("apart", fresh("wrong"), { apiKey: "wrong", maxRetries: 0 });
  for (let n = 0; n < FACTS.wrong_keys; n++) await raised(OpenAI.AuthenticationError, () => stranger.files.list());
  const error = await raised(OpenAI.RateLimitError, () => stranger.files.list());

  same(factsOf(error), [429, "rate_limit_error", "rate_limit_exceeded", null]);
  same(error.headers.get("retry-after"), "5");
});

check("503 is an InternalServerError, and is tried again", async () => {
  const name = fresh("asleep");
  const asked = { model: FACTS.asleep, messages: [{ role: "user", content: "hello" }] };
  const patient = through("plain", name, { maxRetries: 1 });
  const error = await raised(OpenAI.InternalServerError, () => patient.chat.completions.create(asked));

  same(factsOf(error), [503, "server_error", "no_worker", null]);
  same((await told(`seen/${name}`)).map((one) => one.status), [503, 503]);
});

/** A create of which the client hears nothing; the same again, with its key, tells of what the first one made. */
async function spoiledOnce(kind, wanted, patience = {}) {
  const key = fresh("key");
  const fileId = await inputFile([chat("a", "x")]);
  const headers = { "Idempotency-Key": key };
  const impatient = through(kind, key, { maxRetries: 0, ...patience });
  await raised(wanted, () => makeBatch(impatient, headers, key, fileId));
  const { data, response } = await makeBatch(through(kind, key, { maxRetries: 0 }), headers, key, fileId);

  same(response.headers.get("idempotency-replayed"), "true");
  same(await batchesOf(key), [data.id]);
}

check("a server that gives no answer is an APIConnectionError, and the key finds what it made", () =>
  spoiledOnce("lost", OpenAI.APIConnectionError));

check("an answer that comes too late is an APITimeoutError, and the key finds what was made", () =>
  spoiledOnce("late", OpenAI.APIConnectionTimeoutError, { timeout: 500 }));

/** Make something through a front that spoils the first answer, with one key; the object, and the key. */
async function retried(kind, make) {
  const key = fresh("key");
  const { data, response } = await make(through(kind, key), { "Idempotency-Key": key }, key).then((made) => made);
  const asked = await told(`seen/${key}`);
  same(asked.map((one) => [one.method, one.key, one.status]), Array(2).fill(["POST", key, 200]));
  same(response.headers.get("idempotency-replayed"), "true");
  return [data, key];
}

async function makeBatch(spoiled, headers, mark, fileId) {
  const input_file_id = fileId ?? (await inputFile([chat("a", "x")]));
  const body = { input_file_id, endpoint: CHAT, completion_window: "24h", metadata: { mark } };
  return spoiled.batches.create(body, { headers }).withResponse();
}

check("a create whose answer is lost is repeated with its key and makes one batch", async () => {
  const [batch, key] = await retried("lost", makeBatch);

  same(await batchesOf(key), [batch.id]);
  same((await ended(batch)).status, "completed");
});

check("a create whose answer is broken is repeated with its key and makes one batch", async () => {
  const [batch, key] = await retried("broken", makeBatch);

  same(await batchesOf(key), [batch.id]);
});

check("an upload whose answer is lost is repeated with its key and makes one file", async () => {
  const [file, key] = await retried("lost", async (spoiled, headers, mark) =>
    spoiled.files.create({ file: await toFile(DATA, mark), purpose: "user_data" }, { headers }).withResponse(),
  );

  const found = (await all(client.files.list({ purpose: "user_data" }))).filter((one) => one.filename === key);
  same(ids(found), [file.id]);
  assert.ok(DATA.equals(await bytesOf(file.id)));
});

check("without a key a repeated create makes two batches", async () => {
  const name = fresh("twice");

  await makeBatch(through("lost", name), {}, name);

  same((await told(`seen/${name}`)).map((one) => one.key), [null, null]);
  same((await batchesOf(name)).length, 2);
});

check("many calls at once are answered", async () => {
  const numbers = Array.from({ length: 20 }, (_, n) => n);
  const made = await Promise.all(
    numbers.map(async (n) => client.files.create({ file: await small(`a${n}`, `${n}`), purpose: "assistants" })),
  );
  const contents = await Promise.all(made.map((file) => bytesOf(file.id)));

  same(contents.map(String), numbers.map(String));
  const listed = ids(await all(client.files.list({ purpose: "assistants", limit: 7 })));
  same(listed.toSorted(), ids(made).toSorted());
});

await import("./evals.mjs"); // its checks come after those above
await import("./stores.mjs");
await import("./tuning.mjs"); // and these last

const { version } = JSON.parse(readFileSync(new URL("node_modules/openai/package.json", import.meta.url)));
console.log(JSON.stringify({ sdk: version }));
for (const [name, work] of CHECKS) {
  RAW.clear();
  let detail = "";
  try {
    await work();
  } catch (error) {
    detail = String(error?.stack ?? error);
  }
  console.log(JSON.stringify({ check: name, ok: !detail, detail, raw: [...RAW] }));
}
