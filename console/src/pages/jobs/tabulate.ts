import type { Schema } from "@/api/client";

type Row = Pick<Schema<"ResultRow">, "custom_id" | "answer" | "error_code" | "request" | "row">;

/** The columns of a table of results: of the rows that were submitted, and the fields of their answers. */
export interface TableColumns {
  inputs: readonly string[];
  /** Without fields the whole answer is one column. */
  fields: readonly string[];
}

/** Return the columns that a result decides; null where its request was made of no table and its answer has no schema. */
export function columnsOf({ row, request }: Row): TableColumns | null {
  const fields = Object.keys(propertiesOf(request));
  if (!row && fields.length === 0) return null;
  return { inputs: Object.keys(row ?? {}), fields };
}

/** Return the names of the columns. A field of the answers whose name is taken gets `answer.` before it, as in downloads. */
export function namesOf({ inputs, fields }: TableColumns): string[] {
  const names = [...inputs];
  for (const field of fields.length > 0 ? fields : ["answer"]) names.push(free(field, names));
  return names;
}

function free(name: string, taken: readonly string[]): string {
  return taken.includes(name) ? free(`answer.${name}`, taken) : name;
}

/** Return the texts of a result by the columns of its table: those of the input, then those of the answer. */
export function cellsOf({ row, answer }: Row, { inputs, fields }: TableColumns): string[] {
  const given = inputs.map((name) => textOf(row?.[name]));
  if (fields.length === 0) return [...given, textOf(answer)];
  const values = objectOf(answer);
  return [...given, ...fields.map((field) => textOf(values?.[field]))];
}

/** Return the properties of the schema that the answer to a request follows, of a chat or of a response. */
function propertiesOf(request: Row["request"]): object {
  const { response_format: form, text } = request as {
    response_format?: { json_schema?: { schema?: { properties?: object } } } | null;
    text?: { format?: { schema?: { properties?: object } } | null } | null;
  };
  return form?.json_schema?.schema?.properties ?? text?.format?.schema?.properties ?? {};
}

function objectOf(answer: Row["answer"]): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(String(answer));
    return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}

function textOf(value: unknown): string {
  if (value === undefined || value === null) return "";
  return typeof value === "string" ? value : JSON.stringify(value);
}
