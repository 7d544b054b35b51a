/** The two ways to ask a model. */
export type Protocol = "chat" | "responses";

/** The settings of a request as the form has them; an empty text is not sent. */
export interface Settings {
  system: string;
  temperature: string;
  maxTokens: string;
  /** The texts at which a chat completion stops, one a line. */
  stop: string;
  seed: string;
  /** The vector store that a response searches. */
  store: string;
  maxResults: string;
  refuse: boolean;
  /** The answers are stored, so that they can be rated and stand in the logs. */
  keep: boolean;
}

export const DEFAULT_SETTINGS: Settings = {
  system: "",
  temperature: "0.7",
  maxTokens: "512",
  stop: "",
  seed: "",
  store: "",
  maxResults: "5",
  refuse: false,
  keep: false,
};

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

export type Body = Record<string, unknown>;

const PATHS: Readonly<Record<Protocol, string>> = { chat: "/v1/chat/completions", responses: "/v1/responses" };

/** Return the path that a request is sent to. */
export function pathOf(protocol: Protocol): string {
  return PATHS[protocol];
}

/** Return the body of a request for one answer to a conversation. */
export function bodyOf(protocol: Protocol, model: string, settings: Settings, conversation: readonly Message[]): Body {
  return protocol === "chat" ? chatBody(model, settings, conversation) : responseBody(model, settings, conversation);
}

/** Return the body that asks for the same answer as a stream. */
export function streamed(protocol: Protocol, body: Body): Body {
  return { ...body, stream: true, ...(protocol === "chat" ? { stream_options: { include_usage: true } } : {}) };
}

function chatBody(model: string, settings: Settings, conversation: readonly Message[]): Body {
  const system: Message[] = settings.system ? [{ role: "system", content: settings.system }] : [];
  const stop = settings.stop.split("\n").filter(Boolean);
  return given({
    model,
    messages: [...system, ...conversation],
    temperature: number(settings.temperature),
    max_completion_tokens: number(settings.maxTokens),
    stop: stop.length > 0 ? stop : undefined,
    seed: number(settings.seed),
    store: settings.keep || undefined,
  });
}

function responseBody(model: string, settings: Settings, conversation: readonly Message[]): Body {
  const search = given({
    type: "file_search",
    vector_store_ids: [settings.store],
    max_num_results: number(settings.maxResults),
    refuse: settings.refuse || undefined,
  });
  return given({
    model,
    input: conversation,
    instructions: settings.system || undefined,
    temperature: number(settings.temperature),
    max_output_tokens: number(settings.maxTokens),
    tools: settings.store ? [search] : undefined,
    store: settings.keep,
  });
}

function number(text: string): number | undefined {
  return text.trim() === "" ? undefined : Number(text);
}

function given(fields: Body): Body {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

/** Return a request as a command of the shell. The key is read from the environment. */
export function asCurl(origin: string, protocol: Protocol, body: Body): string {
  const json = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
  return [
    `curl ${origin}${pathOf(protocol)} \\`,
    `  -H "Authorization: Bearer $NIGHTMILL_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${json}'`,
  ].join("\n");
}

/** Return a request as a program for OpenAI's SDK for Python. The key is read from the environment. */
export function asPython(origin: string, protocol: Protocol, body: Body): string {
  const [method, output] = protocol === "chat" ? ["chat.completions", "choices[0].message.content"] : ["responses", "output_text"];
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${pythonOf(value, 1)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=os.environ["NIGHTMILL_API_KEY"])`,
    `answer = client.${method}.create(`,
    ...fields,
    ")",
    `print(answer.${output})`,
    "",
  ].join("\n");
}

/** Return a value of JSON as Python writes it. A text of JSON is one of Python, too. */
function pythonOf(value: unknown, depth: number): string {
  const inner = "    ".repeat(depth + 1);
  const outer = "    ".repeat(depth);
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) {
    return `[${value.map((item) => pythonOf(item, depth)).join(", ")}]`;
  }
  if (Array.isArray(value)) return `[\n${value.map((item) => `${inner}${pythonOf(item, depth + 1)},\n`).join("")}${outer}]`;
  if (typeof value === "object" && value !== null) {
    return `{${Object.entries(value)
      .map(([name, item]) => `${JSON.stringify(name)}: ${pythonOf(item, depth)}`)
      .join(", ")}}`;
  }
  if (typeof value === "boolean") return value ? "True" : "False";
  return value === null ? "None" : JSON.stringify(value);
}
