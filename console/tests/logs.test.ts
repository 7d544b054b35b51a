// @vitest-environment node

import { expect, it } from "vitest";

import { itemsOf, loggedChat, loggedResponse, questionOf, type StoredChat, type StoredResponse } from "@/pages/inference/logs";

const message = (role: string, content: string | null, content_parts: unknown[] | null = null) => ({ id: "m", role, content, content_parts });

it("the answer of a stored chat is the text of its first choice", () => {
  const chat = (choices: unknown) => ({ id: "c", object: "chat.completion", metadata: {}, choices }) as StoredChat;
  const answerOf = (choices: unknown) => loggedChat(chat(choices)).answer;
  expect(answerOf([{ message: { content: "Lima" } }, { message: { content: "Quito" } }])).toBe("Lima");
  expect([answerOf([{ message: { content: null } }]), answerOf([]), answerOf(undefined)]).toEqual(["", "", ""]);
});

it("the answer of a stored response is the texts of its messages", () => {
  const output = [
    { type: "reasoning", summary: [] },
    { type: "message", role: "assistant", content: [{ type: "output_text", text: "Lima" }, { type: "output_text", text: "of course" }] },
  ];
  const response = { id: "r", object: "response", model: "m", created_at: 7, output } as StoredResponse;
  expect(loggedResponse(response)).toEqual({ id: "r", model: "m", created: 7, answer: "Lima\nof course" });
  expect(loggedResponse({ ...response, output: [] }).answer).toBe("");
});

it("the question of a chat is the last message of its user", () => {
  const parts = [{ type: "text", text: "And" }, { type: "image_url" }, { type: "text", text: "Chad?" }];
  expect(questionOf([message("user", "Peru?"), message("assistant", "Lima"), message("user", null, parts), message("tool", "x")])).toBe("And\nChad?");
  expect(questionOf([message("system", "Be brief.")])).toBe("");
});

it("exchanges become items of an eval, a line each", () => {
  expect(itemsOf([{ question: "Peru?", answer: "Lima\n" }])).toBe('{"item":{"question":"Peru?","answer":"Lima\\n"}}\n');
});
