// Vector stores: the checks of `../stores.py`, in its order. Run by `suite.mjs`, after its own.
//
// The engine behind is the fake one: it knows no meaning, but the same text has the same vector. So what is found by words
// is told by words, and what is found by vectors is asked by a chunk's own text.

import assert from "node:assert/strict";

import OpenAI, { toFile } from "openai";

import {
  MODEL, all, check, client, ended, factsOf, fresh, ids, inputFile, linesOf, pagesOf, raised, same, small, until,
} from "./checking.mjs";

const stores = client.vectorStores;
const { files, fileBatches: batches } = stores;

const CAT = "A cat purrs when it is content.";
const ROCKET = "A rocket burns kerosene and oxygen.";
const BREAD = "Bread rises because yeast breathes.";
const TEXTS = { "cat.md": CAT, "rocket.txt": ROCKET, "bread.html": `<html><body><p>${BREAD}</p></body></html>` };
const ATTRIBUTES = {
  "cat.md": { about: "animals", year: 2021, old: true },
  "rocket.txt": { about: "machines", year: 2024, old: false },
  "bread.html": { about: "food", year: 2025 },
};
// One black pixel, and an archive of one text.
const PICTURE = Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
  "base64",
);
const ARCHIVE = Buffer.from(
  "UEsDBBQAAAAAAGCheV2DFtyMAQAAAAEAAAAFAAAAYS50eHR4UEsBAhQDFAAAAAAAYKF5XYMW3IwBAAAAAQAAAAUAAAAAAAAAAAAAAIABAAAAAGEu" +
    "dHh0UEsFBgAAAAABAAEAMwAAACQAAAAAAA==",
  "base64",
);
// Words that one text has, and the one at which the fake engine names the first excerpt.
const QUESTION = "What burns kerosene? !cite";
/** The fake engine's vectors say nothing of meaning. */
const MOSTLY_WORDS = { hybrid_search: { embedding_weight: 1, text_weight: 9 } };
const RESPONSES = "/v1/responses";
const RESULTS = ["file_search_call.results"];
const SMALL = { type: "static", static: { max_chunk_size_tokens: 100, chunk_overlap_tokens: 20 } };
const EMPTY = { total: 0, in_progress: 0, completed: 0, failed: 0, cancelled: 0 };

async function upload(name, content) {
  return (await client.files.create({ file: await toFile(Buffer.from(content), name), purpose: "user_data" })).id;
}

async function uploadAll() {
  const found = {};
  for (const [name, text] of Object.entries(TEXTS)) found[name] = await upload(name, text);
  return found;
}

async function inStore(work, more = {}) {
  const { id } = await stores.create({ name: fresh("store"), ...more });
  try {
    await work(id);
  } finally {
    await stores.delete(id);
  }
}

/** A store with the three texts and their attributes; the ids of the files by name. */
const inLibrary = (work) =>
  inStore(async (store) => {
    const found = await uploadAll();
    for (const [name, file_id] of Object.entries(found))
      await files.create(store, { file_id, attributes: ATTRIBUTES[name] });
    for (const file of Object.values(found)) same((await files.poll(store, file)).status, "completed");
    await work(store, found);
  });

const namesOf = async (search) => (await all(search)).map((one) => one.filename);

check("a vector store is created, retrieved, changed, listed and deleted", async () => {
  const expires_after = { anchor: "last_active_at", days: 3 };
  const made = await stores.create({ name: "first", expires_after, metadata: { mark: fresh("mark") } });
  const others = [];
  for (let n = 0; n < 4; n++) others.push((await stores.create({ name: `more-${n}` })).id);

  same([made.object, made.name, made.status, made.usage_bytes], ["vector_store", "first", "completed", 0]);
  same([made.expires_after, made.expires_at], [expires_after, made.last_active_at + 3 * 86_400]);
  same(await stores.retrieve(made.id), made);
  const changes = { name: "other", expires_after: null, metadata: { mark: "changed" } };
  const changed = await stores.update(made.id, changes);
  same([changed.name, changed.expires_after, changed.expires_at], ["other", null, null]);
  same((await stores.retrieve(made.id)).metadata, { mark: "changed" });
  const mine = [made.id, ...others];
  const pages = await pagesOf(stores.list({ limit: 2 }));
  same(pages.map((page) => page.length), [2, 2, 1]);
  same(pages.flat(), mine.toReversed());
  same(ids(await all(stores.list({ limit: 2, order: "asc" }))), mine);
  same(ids(await all(stores.list({ after: mine[1], order: "asc" }))), mine.slice(2));
  same(ids(await all(stores.list({ before: mine[1], order: "asc" }))), mine.slice(0, 1));
  for (const id of mine) {
    same(await stores.delete(id), { id, object: "vector_store.deleted", deleted: true });
    await raised(OpenAI.NotFoundError, () => stores.retrieve(id));
  }
});

check("a file is brought into a vector store, read, described and taken out", () =>
  inStore(async (store) => {
    const [file_id, inside] = [await upload("rocket.txt", ROCKET), { vector_store_id: store }];
    const attributes = { year: 2024 };
    const done = await files.createAndPoll(store, { file_id, attributes, chunking_strategy: SMALL });

    same([done.id, done.object, done.vector_store_id], [file_id, "vector_store.file", store]);
    same([done.status, done.last_error, done.attributes], ["completed", null, attributes]);
    same(done.chunking_strategy, SMALL);
    assert.ok(done.usage_bytes > ROCKET.length, done.usage_bytes);
    same(await files.retrieve(file_id, inside), done);
    same(await all(files.content(file_id, inside)), [{ type: "text", text: ROCKET }]);
    const other = { about: "rockets", old: false };
    same((await files.update(file_id, { ...inside, attributes: other })).attributes, other);
    const whole = await stores.retrieve(store);
    same([whole.file_counts, whole.usage_bytes], [{ ...EMPTY, total: 1, completed: 1 }, done.usage_bytes]);

    const gone = await files.delete(file_id, inside);
    same(gone, { id: file_id, object: "vector_store.file.deleted", deleted: true });
    await raised(OpenAI.NotFoundError, () => files.retrieve(file_id, inside));
    same(await all(stores.search(store, { query: ROCKET })), []);
    same((await client.files.retrieve(file_id)).id, file_id);
  }));

check("a file is uploaded into a vector store", () =>
  inStore(async (store) => {
    const done = await files.uploadAndPoll(store, await small("cat.md", CAT));
    const begun = await files.upload(store, await small("rocket.txt", ROCKET));
    const then = await files.poll(store, begun.id, { pollIntervalMs: 50 });

    same([done.status, then.id, then.status], ["completed", begun.id, "completed"]);
    for (const one of [done, then]) same((await client.files.retrieve(one.id)).purpose, "assistants");
    same(ids(await all(files.list(store, { order: "asc" }))), [done.id, begun.id]);
  }));

check("a file that cannot be read has failed, and says why", () =>
  inStore(async (store) => {
    const bad = await files.uploadAndPoll(store, await toFile(ARCHIVE, "archive.zip"));
    const black = await files.uploadAndPoll(store, await toFile(PICTURE, "picture.png"));
    const empty = await files.createAndPoll(store, { file_id: await upload("empty.txt", "   \n") });
    const good = await files.createAndPoll(store, { file_id: await upload("cat.md", CAT) });

    same([bad.status, bad.last_error.code, bad.usage_bytes], ["failed", "unsupported_file", 0]);
    same([empty.status, empty.last_error.code], ["failed", "invalid_file"]);
    assert.ok(bad.last_error.message, "no message");
    same([black.status, black.usage_bytes], ["failed", 0]);
    // Where Tesseract is installed a picture can be read, and this one has no text.
    assert.ok(["unsupported_file", "invalid_file"].includes(black.last_error.code), black.last_error.code);
    const failed = await all(files.list(store, { filter: "failed", order: "asc" }));
    same(ids(failed), [bad.id, black.id, empty.id]);
    same(ids(await all(files.list(store, { filter: "completed" }))), [good.id]);
    same((await stores.retrieve(store)).file_counts, { ...EMPTY, total: 4, completed: 1, failed: 3 });
    same(await all(files.content(bad.id, { vector_store_id: store })), []);
  }));

check("files are brought into a vector store together", () =>
  inStore(async (store) => {
    const [found, inside] = [Object.values(await uploadAll()), { vector_store_id: store }];
    const file_ids = [...found, found[0]];
    const done = await batches.createAndPoll(store, { file_ids, chunking_strategy: SMALL });
    const texts = await Promise.all([0, 1, 2, 3, 4].map((n) => small(`n${n}.txt`, `number ${n}`)));
    const fileIds = [await upload("a.zip", ARCHIVE)];
    const uploaded = await batches.uploadAndPoll(store, { files: texts, fileIds });

    same([done.object, done.vector_store_id, done.status], ["vector_store.files_batch", store, "completed"]);
    same(done.file_counts, { ...EMPTY, total: 3, completed: 3 });
    same([uploaded.status, uploaded.file_counts], ["completed", { ...EMPTY, total: 6, completed: 5, failed: 1 }]);
    same(await batches.retrieve(done.id, inside), done);
    same(await batches.poll(store, done.id), done);
    const listed = await all(batches.listFiles(done.id, { ...inside, limit: 2 }));
    same([ids(listed).sort(), listed[0].chunking_strategy], [found.toSorted(), SMALL]);
    const failed = await all(batches.listFiles(uploaded.id, { ...inside, filter: "failed" }));
    same(failed.map((one) => one.last_error.code), ["unsupported_file"]);
    same((await all(files.list(store, { limit: 4 }))).length, 9);
    const conflict = await raised(OpenAI.ConflictError, () => batches.cancel(done.id, inside));
    same(factsOf(conflict), [409, "invalid_request_error", "invalid_state", null]);
  }));

check("files of one batch share attributes, or have their own", () =>
  inStore(async (store) => {
    const found = await uploadAll();
    const wanted = Object.entries(found).map(([name, file_id]) => ({ file_id, attributes: ATTRIBUTES[name] }));
    const batch = await batches.createAndPoll(store, { files: wanted });
    const file_ids = [await upload("a.txt", "a"), await upload("b.txt", "b")];
    const shared = await batches.createAndPoll(store, { file_ids, attributes: { shared: 1 } });

    same([batch.status, batch.file_counts], ["completed", { ...EMPTY, total: 3, completed: 3 }]);
    const listed = await all(batches.listFiles(batch.id, { vector_store_id: store }));
    const inShared = await all(batches.listFiles(shared.id, { vector_store_id: store }));
    same(inShared.map((one) => one.attributes), [{ shared: 1 }, { shared: 1 }]);
    const shown = new Map(listed.map((one) => [one.id, one.attributes]));
    same(shown.size, 3);
    for (const one of wanted) same(shown.get(one.file_id), one.attributes);
  }));

check("a cancelled file batch brings in no more", () =>
  inStore(async (store) => {
    const [slow, inside] = [[], { vector_store_id: store }];
    for (let n = 0; n < 3; n++) slow.push(await upload(`s${n}.txt`, `!slow ${fresh("text")}`));
    const made = await batches.create(store, { file_ids: slow });
    same([made.status, made.file_counts], ["in_progress", { ...EMPTY, total: 3, in_progress: 3 }]);

    await batches.cancel(made.id, inside);
    const done = await batches.poll(store, made.id);

    same([done.status, done.file_counts], ["cancelled", { ...EMPTY, total: 3, cancelled: 3 }]);
    const listed = await all(batches.listFiles(made.id, { ...inside, filter: "cancelled" }));
    same(ids(listed).sort(), slow.toSorted());
    same((await batches.cancel(made.id, inside)).status, "cancelled");
    same(await all(stores.search(store, { query: "slow" })), []);
  }));

check("a vector store is searched", () =>
  inLibrary(async (store, found) => {
    const page = await stores.search(store, { query: "kerosene", rewrite_query: false });
    const [first] = page.data;

    same([first.file_id, first.filename], [found["rocket.txt"], "rocket.txt"]);
    same([first.content, first.attributes], [[{ type: "text", text: ROCKET }], ATTRIBUTES["rocket.txt"]]);
    assert.ok(first.score > 0 && first.score <= 1, first.score);
    const scores = page.data.map((one) => one.score);
    same(scores, scores.toSorted((one, other) => other - one));
    same((await stores.search(store, { query: "kerosene", max_num_results: 1 })).data.length, 1);
    const both = await namesOf(stores.search(store, { query: ["purrs", "yeast"], max_num_results: 2 }));
    same(both.sort(), ["bread.html", "cat.md"]);
  }));

check("a search is filtered", () =>
  inLibrary(async (store, { "cat.md": cat }) => {
    const found = async (filters) => (await namesOf(stores.search(store, { query: "anything", filters }))).sort();
    const is = (type, key, value) => ({ type, key, value });

    same(await found(is("eq", "about", "food")), ["bread.html"]);
    same(await found(is("ne", "about", "food")), ["cat.md", "rocket.txt"]);
    same(await found(is("gt", "year", 2024)), ["bread.html"]);
    same(await found(is("gte", "year", 2024)), ["bread.html", "rocket.txt"]);
    same(await found(is("lt", "year", 2024)), ["cat.md"]);
    same(await found(is("lte", "year", 2024)), ["cat.md", "rocket.txt"]);
    same(await found(is("eq", "old", true)), ["cat.md"]);
    same(await found(is("in", "about", ["food", "animals"])), ["bread.html", "cat.md"]);
    same(await found(is("nin", "about", ["food", "animals"])), ["rocket.txt"]);
    const either = { type: "or", filters: [is("eq", "about", "food"), is("lt", "year", 2022)] };
    same(await found(either), ["bread.html", "cat.md"]);
    same(await found({ type: "and", filters: [either, is("ne", "old", true)] }), ["bread.html"]);
    await files.update(cat, { vector_store_id: store, attributes: { about: "food" } });
    same(await found(is("eq", "about", "food")), ["bread.html", "cat.md"]);
    const wrong = await raised(OpenAI.BadRequestError, () => found(is("like", "about", "f")));
    same(factsOf(wrong), [400, "invalid_request_error", "invalid_value", "filters.type"]);
  }));

check("a search is ranked as it asks", () =>
  inLibrary(async (store) => {
    async function found(query, embedding_weight, text_weight, score_threshold = 0) {
      const hybrid_search = { embedding_weight, text_weight };
      const ranking_options = { ranker: "auto", score_threshold, hybrid_search };
      const hits = await all(stores.search(store, { query, ranking_options }));
      return hits.map((one) => [one.filename, Number(one.score.toFixed(4))]);
    }

    same(await found("kerosene", 0, 1), [["rocket.txt", 1]]);
    same(await found(BREAD, 1, 0, 0.99), [["bread.html", 1]]);
    same((await found(BREAD, 1, 0)).length, 3);
    same((await found(CAT, 1, 1))[0], ["cat.md", 1]);
    const ranking_options = { ranker: "auto", score_threshold: 1 };
    same(await namesOf(stores.search(store, { query: CAT, ranking_options })), ["cat.md"]);
    const error = await raised(OpenAI.BadRequestError, () => found("x", 0, 0));
    same(factsOf(error).slice(0, 2), [400, "invalid_request_error"]);
  }));

check("a vector store is made with its files, and they are listed page by page", async () => {
  const file_ids = Object.values(await uploadAll());
  const work = async (store) => {
    await until(async () => (await stores.retrieve(store)).status === "completed", "the files are in");

    same((await stores.retrieve(store)).file_counts, { ...EMPTY, total: 3, completed: 3 });
    const done = await batches.createAndPoll(store, { file_ids });
    const ofStore = (asked) => files.list(store, asked);
    const ofBatch = (asked) => batches.listFiles(done.id, { vector_store_id: store, ...asked });
    for (const list of [ofStore, ofBatch]) {
      const up = ids(await all(list({ order: "asc" })));
      same(up.toSorted(), file_ids.toSorted());
      same(ids(await all(list({}))), up.toReversed());
      same(await pagesOf(list({ limit: 2, order: "desc" })), [[up[2], up[1]], [up[0]]]);
      same(ids(await all(list({ order: "asc", after: up[0] }))), up.slice(1));
      same(ids(await all(list({ order: "asc", before: up[1] }))), up.slice(0, 1));
      same(await all(list({ filter: "failed" })), []);
    }
  };
  await inStore(work, { file_ids, chunking_strategy: SMALL });
});

/** A response that searches a store and shows what it found. */
const asking = (store, more = {}) => ({
  model: MODEL,
  input: QUESTION,
  tools: [{ type: "file_search", vector_store_ids: [store], max_num_results: 1, ranking_options: MOSTLY_WORDS, ...more }],
  include: RESULTS,
});

/** It searched, found this file and no other, and cites it where it names it. */
function checkCited({ output: [call, message] }, file) {
  same([call.type, call.status, call.queries], ["file_search_call", "completed", [QUESTION]]);
  const [[result], [part]] = [call.results, message.content];
  same([call.results.length, message.content.length], [1, 1]);
  same([result.file_id, result.filename, result.text], [file, "rocket.txt", ROCKET]);
  same(result.attributes, ATTRIBUTES["rocket.txt"]);
  assert.ok(result.score > 0 && result.score <= 1, result.score);
  assert.ok(part.text.startsWith("echo "), part.text);
  checkCitation(part.annotations, part.text, file);
}

function checkCitation(annotations, text, file) {
  same(annotations.map((one) => [one.type, one.file_id, one.filename]), [["file_citation", file, "rocket.txt"]]);
  same(annotations[0].index, text.indexOf("[1]"));
}

check("a response searches files and cites them", () =>
  inLibrary(async (store, { "rocket.txt": rocket }) => {
    const made = await client.responses.create(asking(store));
    const plain = await client.responses.create({ ...asking(store), include: null, store: false });
    const food = { type: "eq", key: "about", value: "food" };
    const filtered = await client.responses.create(asking(store, { filters: food }));
    const nothing = await client.responses.create(asking(store, { filters: { ...food, value: "drink" } }));

    same(made.status, "completed");
    checkCited(made, rocket);
    same(made.tools.map((tool) => tool.type), ["file_search"]);
    checkCited(await client.responses.retrieve(made.id, { include: RESULTS }), rocket);
    for (const hidden of [plain, await client.responses.retrieve(made.id)]) {
      same(hidden.output[0].results, null);
      checkCitation(hidden.output[1].content[0].annotations, hidden.output_text, rocket);
    }
    same(filtered.output[0].results.map((one) => one.filename), ["bread.html"]);
    same([nothing.output[0].results, nothing.output[1].content[0].annotations], [[], []]);
    const error = await raised(OpenAI.NotFoundError, () => client.responses.create(asking("vs_none")));
    same(factsOf(error), [404, "invalid_request_error", "vector_store_not_found", "tools"]);
  }));

check("a response that searches files is streamed", () =>
  inLibrary(async (store, { "rocket.txt": rocket }) => {
    const events = [];
    for await (const event of await client.responses.create({ ...asking(store), stream: true })) events.push(event);
    const stream = client.responses.stream(asking(store));
    const helped = [];
    for await (const event of stream) helped.push(event.type);
    const final = await stream.finalResponse();

    const kinds = events.map((event) => event.type);
    const steps = kinds.filter((kind) => kind.startsWith("response.file_search_call."));
    same(steps, ["in_progress", "searching", "completed"].map((step) => `response.file_search_call.${step}`));
    assert.ok(kinds.indexOf(steps.at(-1)) < kinds.indexOf("response.output_text.delta"), kinds.join());
    same(events.map((event) => event.sequence_number), [...events.keys()]);
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    const text = deltas.map((event) => event.delta).join("");
    const added = events.filter((event) => event.type === "response.output_text.annotation.added");
    checkCitation(added.map((event) => event.annotation), text, rocket);
    same([kinds.at(-1), helped], ["response.completed", kinds]);
    for (const whole of [events.at(-1).response, final]) {
      same(whole.output[1].content[0].text, text);
      checkCited(whole, rocket);
    }
  }));

check("a response in the background searches files", () =>
  inLibrary(async (store, { "rocket.txt": rocket }) => {
    const made = await client.responses.create({ ...asking(store), background: true });
    const done = await until(async () => {
      const now = await client.responses.retrieve(made.id, { include: RESULTS });
      return !["queued", "in_progress"].includes(now.status) && now;
    }, `the end of ${made.id}`);

    same(done.status, "completed");
    checkCited(done, rocket);
  }));

check("a batch of responses searches files", () =>
  inLibrary(async (store, { "rocket.txt": rocket }) => {
    const lines = Object.entries({ good: asking(store), bad: asking("vs_none") });
    const input_file_id = await inputFile(
      lines.map(([custom_id, body]) => ({ custom_id, method: "POST", url: RESPONSES, body })),
    );
    const made = await client.batches.create({ input_file_id, endpoint: RESPONSES, completion_window: "24h" });
    const batch = await ended(made);

    same([batch.status, batch.request_counts], ["completed", { total: 2, completed: 1, failed: 1 }]);
    const [output, errors] = [await linesOf(batch.output_file_id), await linesOf(batch.error_file_id)];
    same([[...output.keys()], [...errors.keys()]], [["good"], ["bad"]]);
    checkCited(output.get("good").response.body, rocket);
    const { status_code, body } = errors.get("bad").response;
    same([status_code, body.error.code], [404, "vector_store_not_found"]);
  }));

check("what is in no vector store is a NotFoundError", () =>
  inStore(async (store) => {
    const [file_id, inside] = [await upload("cat.md", CAT), { vector_store_id: store }];
    for (const [param, call] of Object.entries({
      vector_store_id: () => stores.retrieve("vs_none"),
      file_id: () => files.retrieve(file_id, inside),
      batch_id: () => batches.retrieve("vsfb_none", inside),
    })) {
      const error = await raised(OpenAI.NotFoundError, call);
      same(factsOf(error), [404, "invalid_request_error", "not_found", param]);
    }
    for (const call of [
      () => stores.update("vs_none", { name: "x" }),
      () => stores.delete("vs_none"),
      () => stores.search("vs_none", { query: "x" }),
      () => files.list("vs_none"),
      () => files.create("vs_none", { file_id }),
      () => files.create(store, { file_id: "file-none" }),
      () => files.content(file_id, inside),
      () => files.update(file_id, { ...inside, attributes: {} }),
      () => files.delete(file_id, inside),
      () => batches.create(store, { file_ids: [file_id, "file-none"] }),
      () => batches.cancel("vsfb_none", inside),
      () => batches.listFiles("vsfb_none", inside),
    ])
      await raised(OpenAI.NotFoundError, call);
    same((await stores.retrieve(store)).file_counts, EMPTY);
  }));

check("many searches at once are answered", () =>
  inStore(async (store) => {
    const names = [0, 1, 2, 3, 4, 5].map((n) => `n${n}.txt`);
    const texts = await Promise.all(names.map((name, n) => small(name, `number${n} is here`)));
    const done = await batches.uploadAndPoll(store, { files: texts });
    same(done.file_counts, { ...EMPTY, total: 6, completed: 6 });
    same((await files.uploadAndPoll(store, await small("cat.md", CAT))).status, "completed");
    const found = await Promise.all(names.map((_, n) => stores.search(store, { query: `number${n}`, ranking_options: MOSTLY_WORDS })));
    same(found.map((page) => page.data[0].filename), names);
    same((await all(files.list(store, { limit: 3 }))).length, 7);
  }));
