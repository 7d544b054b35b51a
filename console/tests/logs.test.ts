// @vitest-environment node

import { expect, it } from "vitest";

import { answerOf, itemsOf, questionOf, type StoredChat } from "@/pages/inference/logs";

const message = (role: string, content: string | null, content_parts: unknown[] | null = null) => ({ id: "m", role, content, content_parts });

it("the answer of a stored chat is the text of its first choice", () => {
  const chat = (choices: unknown) => ({ id: "c", object: "chat.completion", metadata: {}, choices }) as StoredChat;
  expect(answerOf(chat([{ message: { content: "Lima" } }, { message: { content: "Quito" } }]))).toBe("Lima");
  expect([answerOf(chat([{ message: { content: null } }])), answerOf(chat([])), answerOf(chat(undefined))]).toEqual(["", "", ""]);
});

it("the question of a chat is the last message of its user", () => {
  const parts = [{ type: "text", text: "And" }, { type: "image_url" }, { type: "text", text: "Chad?" }];
  expect(questionOf([message("user", "Peru?"), message("assistant", "Lima"), message("user", null, parts), message("tool", "x")])).toBe("And\nChad?");
  expect(questionOf([message("system", "Be brief.")])).toBe("");
});

it("exchanges become items of an eval, a line each", () => {
  expect(itemsOf([{ question: "Peru?", answer: "Lima\n" }])).toBe('{"item":{"question":"Peru?","answer":"Lima\\n"}}\n');
});
