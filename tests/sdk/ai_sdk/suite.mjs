// What Vercel's AI SDK does with a running server, one line of JSON a check: `{"check", "ok", "detail", "raw"}`.
//
//     node suite.mjs '{"url": …}'         the facts are those of tests.sdk.deployment
//
// Its provider for OpenAI has responses stored, and refers to their items (`item_reference`) from the second turn on.
// A prompt with "!tool" makes the fake engine call the first function that the request offers.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const FACTS = JSON.parse(process.argv[2]);
const CHECKS = new Map();
const check = (name, work) => CHECKS.set(name, work);
const same = (got, wanted) => assert.deepStrictEqual(got, wanted);

let sent = []; // the bodies of the requests of one check

const openai = createOpenAI({
  apiKey: FACTS.key,
  baseURL: `${FACTS.url}/v1`,
  fetch: (url, options) => {
    sent.push(JSON.parse(options.body));
    return fetch(url, options);
  },
});
const model = openai(FACTS.model);
const weather = tool({
  description: "Return the weather of a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => ({ city, sky: "clear" }),
});
const user = (content) => ({ role: "user", content });
const kinds = (body) => body.input.map((item) => item.type ?? item.role);

/** The text and the messages of one turn, which is streamed or not. */
async function turn(streamed, messages, options = {}) {
  const asked = { model, messages, maxRetries: 0, ...options };
  if (!streamed) {
    const answer = await generateText(asked);
    return { text: answer.text, messages: answer.response.messages, calls: answer.steps.flatMap((s) => s.toolCalls) };
  }
  const stream = streamText(asked);
  let text = "";
  for await (const part of stream.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "start-step") text = "";
    if (part.type === "text-delta") text += part.text;
  }
  const [steps, { messages: answered }] = await Promise.all([stream.steps, stream.response]);
  return { text, messages: answered, calls: steps.flatMap((step) => step.toolCalls) };
}

for (const streamed of [false, true]) {
  const how = streamed ? "as a stream" : "whole";

  check(`a second turn refers to the text of the first, ${how}`, async () => {
    const history = [user("one")];
    const first = await turn(streamed, history);
    history.push(...first.messages, user("two"));

    const second = await turn(streamed, history);

    const unstored = await turn(streamed, history, { providerOptions: { openai: { store: false } } });

    assert.match(first.text, /^echo /);
    assert.match(second.text, /^echo /);
    same(kinds(sent[1]), ["user", "item_reference", "user"]);
    same(kinds(sent[2]), ["user", "assistant", "user"]);
    same(second.text, unstored.text); // the same words before the engine: it answers the same to the same
  });

  check(`a tool is called, its result is read, and the next turn refers to all of it, ${how}`, async () => {
    const options = { tools: { weather }, stopWhen: stepCountIs(3) };
    const history = [user("Will it rain? !tool")];
    const first = await turn(streamed, history, options);
    history.push(...first.messages, user("And tomorrow?"));

    const second = await turn(streamed, history, options);

    same(first.calls.map((call) => [call.toolName, call.input]), [["weather", { city: "echo" }]]);
    assert.match(first.text, /^echo /);
    assert.match(second.text, /^echo /);
    const [, result, later] = sent;
    assert.ok(kinds(result).includes("function_call_output"));
    assert.ok(kinds(later).includes("item_reference"));
    same(kinds(later).at(-1), "user");
  });
}

check("a turn that refers to a deleted item hears which", async () => {
  const first = await turn(false, [user("one")]);
  const { itemId } = first.messages[0].content[0].providerOptions.openai;
  const deleted = await fetch(`${FACTS.url}/v1/responses/resp_${itemId.split("_").at(-1).slice(0, 24)}`, {
    method: "DELETE",
    headers: { Authorization: `Bearer ${FACTS.key}` },
  });
  same(deleted.status, 200);

  const refused = await turn(false, [user("one"), ...first.messages, user("two")]).catch((error) => error);

  same([refused.statusCode, refused.message], [400, `Item with id '${itemId}' not found.`]);
});

check("what is not stored is sent again, and not referred to", async () => {
  const options = { providerOptions: { openai: { store: false } } };
  const first = await turn(true, [user("one")], options);

  const second = await turn(true, [user("one"), ...first.messages, user("two")], options);

  assert.match(second.text, /^echo /);
  same(kinds(sent[1]), ["user", "assistant", "user"]);
});

const installed = (name) => JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
process.stdout.write(`${JSON.stringify({ sdk: installed("ai") })}\n`);
for (const [name, work] of CHECKS) {
  sent = [];
  const line = { check: name, ok: true, detail: "", raw: [] };
  try {
    await work();
  } catch (error) {
    Object.assign(line, { ok: false, detail: `${error?.stack}\n${JSON.stringify(sent).slice(0, 3000)}` });
  }
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
