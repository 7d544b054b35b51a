import { readText } from "@/components/address";

/** The parameters of the playground's address, which other pages link to. */
export interface PlaygroundSearch {
  /** The model to ask, and a second one beside it. */
  model?: string;
  second?: string;
  api?: "chat" | "responses";
  /** The vector store that responses are drawn from. */
  store?: string;
}

/** Read the parameters of the playground's address. */
export function playgroundSearch(given: Record<string, unknown>): PlaygroundSearch {
  const text = (name: string) => (typeof given[name] === "string" && given[name] !== "" ? given[name] : undefined);
  const api = given.api === "responses" || given.api === "chat" ? given.api : undefined;
  return { model: text("model"), second: text("second"), api, store: text("store") };
}

/** What the page of stored answers shows: those of one API, chats unless it is named, and of one model or of all. */
interface LogsSearch {
  tab?: "responses";
  model?: string;
}

/** Read from the address what the page of stored answers shows. */
export function logsSearch(given: Record<string, unknown>): LogsSearch {
  return { tab: given.tab === "responses" ? "responses" : undefined, model: readText(given.model) };
}
