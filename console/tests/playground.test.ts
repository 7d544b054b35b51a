import { expect, it } from "vitest";

import { EMPTY_ANSWER } from "@/pages/inference/answer";
import { targetOf } from "@/pages/inference/feedback";
import { asCurl, asPython, bodyOf, DEFAULT_SETTINGS, streamed } from "@/pages/inference/requests";

const QUESTION = [{ role: "user", content: 'It\'s "so"\n' }] as const;

it("sends of a chat only what is filled in", () => {
  const settings = { ...DEFAULT_SETTINGS, temperature: "", system: "Be brief.", stop: "a\n\nb", seed: "0", store: "vs_1" };
  expect(bodyOf("chat", "m", settings, QUESTION)).toEqual({
    model: "m",
    messages: [{ role: "system", content: "Be brief." }, ...QUESTION],
    max_completion_tokens: 512,
    stop: ["a", "b"],
    seed: 0,
  });
});

it("asks a response with a search of the chosen store", () => {
  const settings = { ...DEFAULT_SETTINGS, system: "Be brief.", store: "vs_1", refuse: true };
  expect(bodyOf("responses", "m", settings, QUESTION)).toEqual({
    model: "m",
    input: QUESTION,
    instructions: "Be brief.",
    temperature: 0.7,
    max_output_tokens: 512,
    tools: [{ type: "file_search", vector_store_ids: ["vs_1"], max_num_results: 5, refuse: true }],
    store: false,
  });
  expect(bodyOf("responses", "m", DEFAULT_SETTINGS, QUESTION)).not.toHaveProperty("tools");
});

it("asks for the usage of a streamed chat", () => {
  expect(streamed("chat", { model: "m" })).toEqual({ model: "m", stream: true, stream_options: { include_usage: true } });
  expect(streamed("responses", { model: "m" })).toEqual({ model: "m", stream: true });
});

it("writes a command that the shell reads back", () => {
  const command = asCurl("http://host", "chat", { messages: QUESTION });
  expect(command).toContain("curl http://host/v1/chat/completions");
  expect(command).toContain('-H "Authorization: Bearer $NIGHTMILL_API_KEY"');
  const quoted = command.slice(command.indexOf("-d '") + 4, -1);
  expect(JSON.parse(quoted.replaceAll(String.raw`'\''`, "'"))).toEqual({ messages: QUESTION });
});

it("writes a program for the SDK", () => {
  const body = bodyOf("responses", "m", { ...DEFAULT_SETTINGS, temperature: "", store: "vs_1", refuse: true }, QUESTION);
  expect(asPython("http://host", "responses", body)).toBe(`import os

from openai import OpenAI

client = OpenAI(base_url="http://host/v1", api_key=os.environ["NIGHTMILL_API_KEY"])
answer = client.responses.create(
    model="m",
    input=[
        {"role": "user", "content": "It's \\"so\\"\\n"},
    ],
    max_output_tokens=512,
    tools=[
        {"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 5, "refuse": True},
    ],
    store=False,
)
print(answer.output_text)
`);
});

it("stores answers on demand", () => {
  const settings = { ...DEFAULT_SETTINGS, keep: true };
  expect(bodyOf("chat", "m", settings, QUESTION)).toMatchObject({ store: true });
  expect(bodyOf("responses", "m", settings, QUESTION)).toMatchObject({ store: true });
  expect(bodyOf("chat", "m", DEFAULT_SETTINGS, QUESTION)).not.toHaveProperty("store");
});

it("rates only answers that are stored and whole", () => {
  const turn = { protocol: "chat", body: { store: true }, answer: { ...EMPTY_ANSWER, id: "chatcmpl-1" }, state: "done" } as const;
  expect(targetOf(turn)).toEqual({ type: "chat.completion", completion_id: "chatcmpl-1" });
  expect(targetOf({ ...turn, protocol: "responses" })).toEqual({ type: "response", response_id: "chatcmpl-1" });
  expect(targetOf({ ...turn, body: {} })).toBeNull();
  expect(targetOf({ ...turn, state: "stopped" })).toBeNull();
  expect(targetOf({ ...turn, answer: EMPTY_ANSWER })).toBeNull();
});
