import type { Schema } from "@/api/client";

import { readRows } from "./csv";

export type Endpoint = Schema<"CreateBatch">["endpoint"];

/** The endpoints of batches with what each does. */
export const ENDPOINTS: readonly (readonly [endpoint: Endpoint, label: string])[] = [
  ["/v1/chat/completions", "Chat completions"],
  ["/v1/responses", "Responses"],
  ["/v1/completions", "Completions"],
  ["/v1/embeddings", "Embeddings"],
  ["/v1/rerank", "Rankings"],
];

/** The endpoints that a prompt template can make requests for. */
export const TEMPLATE_ENDPOINTS = ENDPOINTS.filter(([endpoint]) => endpoint !== "/v1/rerank");

/** The types of the columns of answers. A `choice` takes one of a few texts. */
export const COLUMN_TYPES = ["string", "integer", "number", "boolean", "choice"] as const;

/** A column of the answers. `choices` are those of a `choice`, separated by commas. */
export interface AnswerColumn {
  name: string;
  type: (typeof COLUMN_TYPES)[number];
  choices: string;
}

/** The settings by which each row of a table becomes a request. `{{column}}` stands for the row's value. */
export interface Template {
  endpoint: Endpoint;
  model: string;
  system: string;
  prompt: string;
  /** Tokens of an answer at most; null for the model's own limit. */
  limit: number | null;
  /** How freely the model answers; null for the model's own setting. */
  temperature: number | null;
  /** The columns of the answers; none for answers that are one text. */
  columns: readonly AnswerColumn[];
  /** The column with the `custom_id`; null for `row-1`, `row-2` and so on. */
  idColumn: string | null;
}

const PLACEHOLDER = /\{\{([^{}]*)\}\}/g;

/** Return the names of the columns that a template names, each once. */
export function placeholders(template: string): string[] {
  return [...new Set([...template.matchAll(PLACEHOLDER)].map((match) => match[1]!.trim()))];
}

/** Return a function that fills a template with the fields of a row. Of columns with the same name the first counts. */
export function filler(template: string, columns: readonly string[]): (row: readonly string[]) => string {
  const parts = template.split(PLACEHOLDER).map((part, index) => (index % 2 === 0 ? part : columns.indexOf(part.trim())));
  return (row) => parts.map((part) => (typeof part === "string" ? part : (row[part] ?? ""))).join("");
}

/** Return what keeps a template from making requests of a table; nothing where all is well. */
export function problemsOf(template: Template, columns: readonly string[]): string[] {
  const named = placeholders(`${template.system} ${template.prompt}`);
  const unknown = named.filter((name) => !columns.includes(name));
  const problems = unknown.map((name) => `The table has no column “${name}”.`);
  if (template.model.trim() === "") problems.push("Choose a model.");
  if (template.prompt.trim() === "") problems.push("Write a prompt.");
  else if (named.length === 0) problems.push("The prompt names no column, so that every request would be the same.");
  return [...problems, ...(hasSchema(template) ? problemsOfColumns(template.columns) : [])];
}

function problemsOfColumns(columns: readonly AnswerColumn[]): string[] {
  const names = columns.map(({ name }) => name.trim());
  const problems: string[] = [];
  if (names.includes("")) problems.push("A column of the answers has no name.");
  if (new Set(names).size < names.length) problems.push("Two columns of the answers have the same name.");
  if (columns.some((column) => column.type === "choice" && choicesOf(column).length === 0)) problems.push("A column of the answers has no choices.");
  return problems;
}

function choicesOf({ choices }: AnswerColumn): string[] {
  return choices.split(",").map((choice) => choice.trim()).filter((choice) => choice !== "");
}

/** Return whether the answers to a template may have columns: those of chats and of responses. */
export function hasSchema({ endpoint }: Pick<Template, "endpoint">): boolean {
  return endpoint === "/v1/chat/completions" || endpoint === "/v1/responses";
}

/** Return the JSON schema of answers with these columns. */
export function schemaOf(columns: readonly AnswerColumn[]) {
  const properties = Object.fromEntries(
    columns.map((column) => [column.name.trim(), column.type === "choice" ? { type: "string", enum: choicesOf(column) } : { type: column.type }]),
  );
  return { type: "object", properties, required: Object.keys(properties), additionalProperties: false };
}

/** Return a function that makes the line of a request of a row; `n` counts rows from 1. */
export function liner(template: Template, columns: readonly string[]): (row: readonly string[], n: number) => string {
  const prompt = filler(template.prompt, columns);
  const system = filler(template.system, columns);
  const idColumn = template.idColumn === null ? -1 : columns.indexOf(template.idColumn);
  return (row, n) => {
    const id = (row[idColumn] ?? "") || `row-${n}`;
    const body = { model: template.model.trim(), ...bodyOf(template, system(row), prompt(row)) };
    return JSON.stringify({ custom_id: id, row: cellsOf(columns, row), method: "POST", url: template.endpoint, body });
  };
}

/** Return the values of a row by their columns. Of columns with the same name the first counts. */
function cellsOf(columns: readonly string[], row: readonly string[]): Record<string, string> {
  const cells = Object.create(null) as Record<string, string>;
  for (const [index, column] of columns.entries()) if (!(column in cells)) cells[column] = row[index] ?? "";
  return cells;
}

function bodyOf({ endpoint, limit, temperature, columns }: Template, system: string, prompt: string): Record<string, unknown> {
  const sampling = temperature === null ? {} : { temperature };
  const limited = (name: string) => (limit === null ? sampling : { ...sampling, [name]: limit });
  const form = { type: "json_schema", name: "row", strict: true, schema: schemaOf(columns) };
  const hasSystem = system.trim() !== "";
  switch (endpoint) {
    case "/v1/embeddings":
      return { input: prompt };
    case "/v1/completions":
      return { prompt, ...limited("max_tokens") };
    case "/v1/responses":
      return {
        ...(hasSystem ? { instructions: system } : {}),
        input: prompt,
        ...(columns.length > 0 ? { text: { format: form } } : {}),
        ...limited("max_output_tokens"),
      };
    default: {
      const messages = [...(hasSystem ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
      const { type, ...schema } = form;
      return { messages, ...(columns.length > 0 ? { response_format: { type, json_schema: schema } } : {}), ...limited("max_completion_tokens") };
    }
  }
}

/** The beginning of a table. */
export interface TableHead {
  columns: string[];
  rows: string[][];
  /** The text has characters that no UTF-8 text has. */
  isGarbled: boolean;
}

/** Read the columns and the first rows of a table. Raises: Error for a table that cannot be read. */
export async function readHead(file: Blob, count: number): Promise<TableHead> {
  const all: string[][] = [];
  for await (const rows of readRows(file)) {
    all.push(...rows.slice(0, count + 1));
    if (all.length > count) break;
  }
  const [columns = [], ...rows] = all.slice(0, count + 1);
  if (columns.length === 0) throw new Error("The table is empty.");
  if (rows.length === 0) throw new Error("The table has a head, and no row below it.");
  return { columns: columns.map((name) => name.trim()), rows, isGarbled: all.flat().some((field) => field.includes("\uFFFD")) };
}

/** The requests of a whole table. */
export interface Requests {
  content: Blob;
  count: number;
  /** The first row whose number of fields is not that of the head, counted from 1; null where there is none. */
  unevenRow: number | null;
}

/** Make the requests of a table, some rows at a time. `onCount` receives how many there are so far. Raises: Error. */
export async function makeRequests(file: Blob, template: Template, onCount: (count: number) => void): Promise<Requests> {
  const pieces: Blob[] = [];
  let columns: string[] | null = null;
  let line: ReturnType<typeof liner> | null = null;
  let count = 0;
  let unevenRow: number | null = null;
  for await (const rows of readRows(file)) {
    const lines: string[] = [];
    for (const row of rows) {
      if (columns === null || line === null) {
        columns = row.map((name) => name.trim());
        line = liner(template, columns);
        continue;
      }
      count += 1;
      if (row.length !== columns.length) unevenRow ??= count;
      lines.push(line(row, count), "\n");
    }
    pieces.push(new Blob([lines.join("")]));
    onCount(count);
  }
  return { content: new Blob(pieces, { type: "application/jsonl" }), count, unevenRow };
}

const FIRST_BYTES = 1_000_000;

/** Return the endpoint that the first request of a file names; null where that cannot be read. */
export async function endpointOf(file: Blob): Promise<Endpoint | null> {
  const text = await file.slice(0, FIRST_BYTES).text();
  const first = text.replace(/^\uFEFF/, "").split("\n").find((line) => line.trim() !== "");
  try {
    const { url } = JSON.parse(first ?? "") as { url?: unknown };
    return ENDPOINTS.find(([endpoint]) => endpoint === url)?.[0] ?? null;
  } catch {
    return null;
  }
}
