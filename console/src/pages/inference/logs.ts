import type { Schema } from "@/api/client";

export type StoredChat = Schema<"CompletionObject">;
type Message = Schema<"StoredMessage">;

/** Return the text of the first answer of a stored chat. Its other fields are those of the engine. */
export function answerOf(chat: StoredChat): string {
  const [choice] = (chat.choices ?? []) as { message?: { content?: unknown } }[];
  return textOf(choice?.message?.content);
}

/** Return the question of a chat: the last message of the user. */
export function questionOf(messages: readonly Message[]): string {
  const asked = messages.findLast(({ role }) => role === "user");
  return asked ? textOf(asked.content ?? asked.content_parts) : "";
}

/** Return the text of a content: of parts, their texts below each other. */
function textOf(content: unknown): string {
  if (!Array.isArray(content)) return typeof content === "string" ? content : "";
  return content.map((part: { text?: unknown }) => textOf(part.text)).filter(Boolean).join("\n");
}

/** A question with the answer that it had. */
export interface Exchange {
  question: string;
  answer: string;
}

/** Return exchanges as items of an eval, a line each: the answer is the reference of later ones. */
export function itemsOf(exchanges: readonly Exchange[]): string {
  return exchanges.map((item) => `${JSON.stringify({ item })}\n`).join("");
}
