import { expect, it } from "vitest";

import { addChatChunk, addResponseEvent, EMPTY_ANSWER, excerptOf } from "@/pages/inference/answer";

it("adds up the chunks of a chat completion", () => {
  const chunks = [
    { choices: [{ delta: { role: "assistant", content: "" } }] },
    { choices: [{ delta: { content: "Li" } }] },
    { choices: [{ delta: { content: "ma" }, finish_reason: "stop" }] },
    { choices: [], usage: { prompt_tokens: 5, completion_tokens: 2 } },
  ];
  expect(chunks.reduce(addChatChunk, EMPTY_ANSWER)).toEqual({ ...EMPTY_ANSWER, text: "Lima", finish: "stop", inputTokens: 5, outputTokens: 2 });
});

it("adds up the events of a response, with its citations", () => {
  const citation = { type: "file_citation", index: 4, file_id: "file-1", filename: "a.md", start: 0, end: 9, support: 0.5 };
  const events = [
    { type: "response.created", response: {} },
    { type: "response.output_text.delta", delta: "Li" },
    { type: "response.output_text.delta", delta: "ma" },
    {
      type: "response.completed",
      response: {
        output: [{ type: "file_search_call" }, { content: [{ type: "output_text", annotations: [citation, { type: "url_citation" }] }] }],
        usage: { input_tokens: 5, output_tokens: 2 },
      },
    },
  ];
  const answer = events.reduce(addResponseEvent, EMPTY_ANSWER);
  expect(answer).toMatchObject({ text: "Lima", finish: "completed", citations: [citation], inputTokens: 5, outputTokens: 2 });
});

it("has the id by which a stored answer is fetched", () => {
  const chat = [{ id: "chatcmpl-1", choices: [{ delta: { content: "Lima" } }] }, { choices: [] }];
  expect(chat.reduce(addChatChunk, EMPTY_ANSWER).id).toBe("chatcmpl-1");
  expect(addResponseEvent(EMPTY_ANSWER, { type: "response.completed", response: { id: "resp_1" } }).id).toBe("resp_1");
});

it("shows a refusal as one, and an answer that was cut off", () => {
  const refused = addResponseEvent(EMPTY_ANSWER, { type: "response.refusal.delta", delta: "No." });
  expect(refused).toMatchObject({ text: "No.", isRefusal: true });
  const cut = addResponseEvent(EMPTY_ANSWER, { type: "response.incomplete", response: { incomplete_details: { reason: "max_output_tokens" } } });
  expect(cut.finish).toBe("max_output_tokens");
});

it.each([
  [addChatChunk, { error: { message: "Broken.", code: "engine_died" } }],
  [addResponseEvent, { type: "error", message: "Broken.", code: "engine_died" }],
  [addResponseEvent, { type: "response.failed", response: { error: { message: "Broken.", code: "engine_died" } } }],
])("raises the error of a stream", (add, event) => {
  expect(() => add(EMPTY_ANSWER, event)).toThrow(expect.objectContaining({ message: "Broken.", code: "engine_died" }) as Error);
});

it("cuts an excerpt by code points", () => {
  expect(excerptOf("😀ab😀cd😀", 3, 5, 2)).toEqual({ before: "ab", text: "😀c", after: "d😀" });
  expect(excerptOf("short", 0, 100)).toEqual({ before: "", text: "short", after: "" });
});
