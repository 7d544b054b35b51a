import type { Schema } from "@/api/client";

export type Prompt = Schema<"PromptObject">;
export type Version = Schema<"PromptVersionObject">;
export type VersionBody = Schema<"CreateVersion">;

/** A value of a variable: a text, or a value of JSON. */
type Value = string | number | boolean | object | null;

export const ROLES = ["system", "developer", "user", "assistant"] as const;
export const TYPES = ["string", "number", "boolean", "json", "image", "file"] as const;
export type VariableType = (typeof TYPES)[number];

/** A variable of a version, as the API shows it. */
export interface Variable {
  readonly name: string;
  readonly type: VariableType;
  readonly required: boolean;
  readonly default: Value;
}

/** A message of a version. */
export interface Message {
  readonly role: (typeof ROLES)[number];
  readonly content: string | readonly object[];
}

/** A variable as the form has it: its default is a text, empty for none. */
export interface VariableForm extends Omit<Variable, "default"> {
  readonly default: string;
}

/** A message as the form has it. The text is the JSON of the parts where `isParts` holds. */
export interface MessageForm {
  readonly role: Message["role"];
  readonly isParts: boolean;
  readonly text: string;
}

/** The parameters that have a field of their own. */
export const NUMBERS = [
  { name: "temperature", label: "Temperature", max: 2, step: 0.1 },
  { name: "top_p", label: "Top p", max: 1, step: 0.05 },
  { name: "max_output_tokens", label: "Longest answer in tokens", max: undefined, step: 1 },
] as const;

/** The parts of a version that are written as JSON. */
export const JSON_FIELDS = [
  { name: "parameters", label: "Other parameters", hint: 'As in a response: {"reasoning": {"effort": "low"}}' },
  { name: "tools", label: "Tools", hint: 'A list: [{"type": "function", "name": "order_status", "parameters": {…}}]' },
  { name: "tool_choice", label: "Choice of tools", hint: '"auto", "required", "none" or an object' },
  { name: "text", label: "Format of the answer", hint: '{"format": {"type": "json_schema", "name": "reply", "schema": {…}}}' },
] as const;

/** A version as the form has it; an empty text is not sent. */
export interface VersionForm {
  readonly model: string;
  readonly instructions: string;
  readonly messages: readonly MessageForm[];
  readonly numbers: Readonly<Record<(typeof NUMBERS)[number]["name"], string>>;
  readonly json: Readonly<Record<(typeof JSON_FIELDS)[number]["name"], string>>;
  /** What is known of variables; those that no text uses are left out of the version. */
  readonly variables: readonly VariableForm[];
}

export const EMPTY_VERSION: VersionForm = {
  model: "",
  instructions: "",
  messages: [{ role: "user", isParts: false, text: "" }],
  numbers: { temperature: "", top_p: "", max_output_tokens: "" },
  json: { parameters: "", tools: "", tool_choice: "", text: "" },
  variables: [],
};

/** Return the messages of a version. */
export function messagesOf(version: Version): readonly Message[] {
  return version.messages as unknown as Message[];
}

/** Return the variables of a version. */
export function variablesOf(version: Version): readonly Variable[] {
  return version.variables as unknown as Variable[];
}

/** Return a value as JSON on several lines; an empty text for null, an empty list and an empty object. */
export function writeJson(value: unknown): string {
  const isEmpty = typeof value === "object" && Object.keys(value ?? {}).length === 0;
  return value === undefined || isEmpty ? "" : JSON.stringify(value, null, 2);
}

/** Return what is wrong with a text that should be JSON; null where it is JSON, or empty. */
export function jsonProblem(text: string): string | null {
  try {
    readJson(text);
    return null;
  } catch (error) {
    return `This is not JSON: ${(error as SyntaxError).message}`;
  }
}

function readJson(text: string): unknown {
  return text.trim() === "" ? undefined : JSON.parse(text);
}

/** Return a version as the form has it. */
export function formOf(version: Version): VersionForm {
  const parameters: Record<string, unknown> = { ...version.parameters };
  const numbers = { ...EMPTY_VERSION.numbers };
  for (const { name } of NUMBERS) {
    if (typeof parameters[name] !== "number") continue;
    numbers[name] = String(parameters[name]);
    delete parameters[name];
  }
  return {
    model: version.model ?? "",
    instructions: version.instructions ?? "",
    messages: messagesOf(version).map(({ role, content }) => {
      const isParts = typeof content !== "string";
      return { role, isParts, text: isParts ? writeJson(content) : content };
    }),
    numbers,
    json: { parameters: writeJson(parameters), tools: writeJson(version.tools), tool_choice: writeJson(version.tool_choice), text: writeJson(version.text) },
    variables: variablesOf(version).map((variable) => ({ ...variable, default: writeValue(variable.type, variable.default) })),
  };
}

/** Return the variables that the texts of a form use, in the order in which they are used first. */
export function usedVariables({ instructions, messages, variables }: VersionForm): VariableForm[] {
  const texts = [instructions, ...messages.map(({ text }) => text)];
  const names = texts.flatMap((text) => [...text.matchAll(/\{\{\s*([A-Za-z_][\w-]{0,63})\s*\}\}/g)].map((match) => match[1]!));
  const fresh = { type: "string", required: true, default: "" } as const;
  return [...new Set(names)].map((name) => variables.find((variable) => variable.name === name) ?? { name, ...fresh });
}

/** Return whether every text of a form that should be JSON is JSON. */
export function isReadable({ messages, json }: VersionForm): boolean {
  const texts = [...messages.filter(({ isParts }) => isParts).map(({ text }) => text), ...Object.values(json)];
  return texts.every((text) => jsonProblem(text) === null);
}

/** Return the content of a version as the API takes it. Raises: SyntaxError, unless the form `isReadable`. */
export function versionBody(form: VersionForm): VersionBody {
  const numbers = Object.entries(form.numbers).filter(([, text]) => text.trim() !== "");
  const json = Object.fromEntries(JSON_FIELDS.map(({ name }) => [name, readJson(form.json[name])]));
  const body = {
    ...json,
    parameters: { ...(json.parameters as object | undefined), ...Object.fromEntries(numbers.map(([name, text]) => [name, Number(text)])) },
    model: form.model || undefined,
    instructions: form.instructions.trim() === "" ? undefined : form.instructions,
    messages: form.messages.filter(({ text }) => text.trim() !== "").map(({ role, isParts, text }) => ({ role, content: isParts ? readJson(text) : text })),
    variables: usedVariables(form).map((variable) => ({ ...variable, default: readValue(variable.type, variable.default) })),
  };
  return body as unknown as VersionBody;
}

/**
 * Return the value of a variable that a text means; undefined for an empty one.
 *
 * An image or a file is the id of a file of the project, or an address. A text that should be JSON and is not stays a
 * text, which the server refuses in words.
 */
export function readValue(type: VariableType, text: string): Value | undefined {
  if (text === "") return undefined;
  if (type === "string") return text;
  if (type === "image" || type === "file") return partOf(type, text);
  return jsonProblem(text) === null ? (readJson(text) as Value) : text;
}

function partOf(type: "image" | "file", text: string): object {
  return { type: `input_${type}`, [text.startsWith("file-") ? "file_id" : `${type}_url`]: text };
}

/** Return the text that means a value of a variable, empty for null. */
export function writeValue(type: VariableType, value: Value): string {
  if (value === null) return "";
  if (typeof value === "string") return value;
  if (type !== "image" && type !== "file") return JSON.stringify(value);
  const part = value as Readonly<Record<string, string | undefined>>;
  return part.file_id ?? part[`${type}_url`] ?? "";
}

/** Return what a request names a prompt by: its id, a version, and the values of its variables that are not empty. */
export function referenceTo(id: string, version: string | undefined, variables: readonly Variable[], texts: Readonly<Record<string, string>>): object {
  const values = variables.map(({ name, type }) => [name, readValue(type, texts[name] ?? "")] as const).filter(([, value]) => value !== undefined);
  return { id, ...(version && { version }), ...(values.length > 0 && { variables: Object.fromEntries(values) }) };
}

/** Return the versions of a prompt's labels: the names by the number. */
export function labelsOf(prompt: Prompt, version: string): string[] {
  return Object.keys(prompt.labels).filter((name) => prompt.labels[name] === version);
}

/** Return a version with what stands for it: 3 (latest, production). */
export function describeVersion(prompt: Prompt, version: string): string {
  const names = [version === prompt.default_version && "default", version === prompt.latest_version && "latest", ...labelsOf(prompt, version)].filter(Boolean);
  return names.length > 0 ? `${version} (${names.join(", ")})` : version;
}
