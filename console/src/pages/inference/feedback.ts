import type { Schema } from "@/api/client";

import type { Turn } from "./conversation";

export type Target = Schema<"CreateFeedback">["target"];

/** Return what feedback on the answer of a turn is about; null where the answer is not stored. */
export function targetOf({ protocol, body, answer, state }: Pick<Turn, "protocol" | "body" | "answer" | "state">): Target | null {
  if (state !== "done" || body.store !== true || answer.id === null) return null;
  return protocol === "chat" ? { type: "chat.completion", completion_id: answer.id } : { type: "response", response_id: answer.id };
}
