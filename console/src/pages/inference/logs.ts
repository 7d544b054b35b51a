import type { Schema } from "@/api/client";

export type StoredChat = Schema<"CompletionObject">;
export type StoredResponse = Schema<"ResponseObject">;

/** A stored answer, of either API. */
export interface Logged {
  id: string;
  model: string;
  /** The second of Unix when it was answered. */
  created: number;
  answer: string;
}

/** A message that a model was shown, or another item, which has no role. */
interface Shown {
  role?: unknown;
  content?: unknown;
  content_parts?: unknown;
}

/** Return a stored chat as the list shows it: the text of its first answer. Its other fields are those of the engine. */
export function loggedChat(chat: StoredChat): Logged {
  const [choice] = (chat.choices ?? []) as { message?: Shown }[];
  return { id: chat.id, model: String(chat.model), created: Number(chat.created), answer: textOf(choice?.message?.content) };
}

/** Return a stored response as the list shows it: the texts of its messages. */
export function loggedResponse(response: StoredResponse): Logged {
  const texts = ((response.output ?? []) as Shown[]).map(({ content }) => textOf(content));
  return { id: response.id, model: String(response.model), created: Number(response.created_at), answer: joined(texts) };
}

/** Return the question of what a model was shown, the oldest first: the last message of the user. */
export function questionOf(shown: readonly object[]): string {
  const asked = (shown as readonly Shown[]).findLast(({ role }) => role === "user");
  return asked ? textOf(asked.content ?? asked.content_parts) : "";
}

/** Return the text of a content: of parts, their texts below each other. */
function textOf(content: unknown): string {
  if (!Array.isArray(content)) return typeof content === "string" ? content : "";
  return joined(content.map((part: { text?: unknown }) => textOf(part.text)));
}

function joined(texts: readonly string[]): string {
  return texts.filter(Boolean).join("\n");
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
