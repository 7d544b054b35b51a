import { ApiError } from "@/api/client";

/** A citation of a file. `start` and `end` count characters of the file's text. */
export interface Citation {
  readonly file_id: string;
  readonly filename: string;
  readonly start: number | null;
  readonly end: number | null;
  /** The share of the statement's words that the excerpt has. */
  readonly support: number | null;
}

/** An answer as far as it has come. */
export interface Answer {
  /** The id of the answer, by which it can be fetched where it is stored. */
  readonly id: string | null;
  readonly text: string;
  readonly isRefusal: boolean;
  readonly citations: readonly Citation[];
  /** Why the answer ended, in the words of the API: `stop`, `length`, `completed`, `max_output_tokens`. */
  readonly finish: string | null;
  readonly inputTokens: number | null;
  readonly outputTokens: number | null;
}

export const EMPTY_ANSWER: Answer = { id: null, text: "", isRefusal: false, citations: [], finish: null, inputTokens: null, outputTokens: null };

interface ErrorBody {
  message?: string;
  code?: string | null;
  param?: string | null;
}

interface Choice {
  delta?: { content?: string | null; refusal?: string | null };
  finish_reason?: string | null;
}

interface ChatChunk {
  id?: string;
  error?: ErrorBody;
  choices?: Choice[];
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
}

interface ResponseBody {
  id?: string;
  error?: ErrorBody | null;
  incomplete_details?: { reason?: string } | null;
  usage?: { input_tokens: number; output_tokens: number } | null;
  output?: { content?: { annotations?: (Citation & { type: string })[] }[] }[];
}

interface ResponseEvent extends ErrorBody {
  type?: string;
  error?: ErrorBody;
  delta?: string;
  response?: ResponseBody;
}

/** Return the answer with a chunk of a chat completion added. Raises: ApiError for an error in the stream. */
export function addChatChunk(answer: Answer, data: unknown): Answer {
  const { id, error, choices, usage } = data as ChatChunk;
  if (error) throw errorOf(error);
  const choice = choices?.[0];
  const next = { ...(choice ? addChoice(answer, choice) : answer), id: id ?? answer.id };
  return usage ? { ...next, inputTokens: usage.prompt_tokens, outputTokens: usage.completion_tokens } : next;
}

function addChoice(answer: Answer, { delta, finish_reason }: Choice): Answer {
  const next = addText(addText(answer, delta?.content), delta?.refusal, true);
  return { ...next, finish: finish_reason ?? next.finish };
}

function addText(answer: Answer, text: string | null | undefined, isRefusal = answer.isRefusal): Answer {
  return text ? { ...answer, text: answer.text + text, isRefusal } : answer;
}

/** Return the answer with an event of a response added. Raises: ApiError for an error in the stream. */
export function addResponseEvent(answer: Answer, data: unknown): Answer {
  const event = data as ResponseEvent;
  switch (event.type) {
    case "response.output_text.delta":
      return addText(answer, event.delta);
    case "response.refusal.delta":
      return addText(answer, event.delta, true);
    case "response.completed":
    case "response.incomplete":
      return event.response ? addEnd(answer, event.response) : answer;
    case "response.failed":
      throw errorOf(event.response?.error ?? event);
    case "error":
      throw errorOf(event.error ?? event);
    default:
      if (event.error) throw errorOf(event.error);
      return answer;
  }
}

function addEnd(answer: Answer, { id, output = [], usage, incomplete_details }: ResponseBody): Answer {
  const annotations = output.flatMap((item) => item.content ?? []).flatMap((part) => part.annotations ?? []);
  return {
    ...answer,
    id: id ?? null,
    citations: annotations.filter((annotation) => annotation.type === "file_citation"),
    finish: incomplete_details?.reason ?? "completed",
    inputTokens: usage?.input_tokens ?? null,
    outputTokens: usage?.output_tokens ?? null,
  };
}

/** Return the error of a stream, which began with status 200. */
function errorOf({ message, code, param }: ErrorBody): ApiError {
  return new ApiError(200, message ?? "The model gave no answer.", code ?? null, param ?? null);
}

/** The part of a file's text that a citation names, with some text around it. */
export interface Excerpt {
  readonly before: string;
  readonly text: string;
  readonly after: string;
}

/** Return the characters from `start` to `end` of a text, which count code points, and up to `around` on each side. */
export function excerptOf(text: string, start: number, end: number, around = 400): Excerpt {
  const from = unitOf(text, Math.max(0, start - around));
  const begin = unitOf(text, start);
  const finish = unitOf(text, end);
  return { before: text.slice(from, begin), text: text.slice(begin, finish), after: text.slice(finish, unitOf(text, end + around)) };
}

/** Return the index in UTF-16 of a code point: JavaScript counts a character beyond U+FFFF as two. */
function unitOf(text: string, codePoint: number): number {
  let unit = 0;
  for (let count = 0; count < codePoint && unit < text.length; count++) unit += text.codePointAt(unit)! > 0xffff ? 2 : 1;
  return unit;
}
