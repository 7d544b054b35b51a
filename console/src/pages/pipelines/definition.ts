import { CORE_SCHEMA, load, YAMLException } from "js-yaml";

import type { Schema } from "@/api/client";

import { STEP_KINDS } from "./pipelines";

type Purpose = Schema<"CreateUpload">["purpose"];
type Entries = Readonly<Record<string, unknown>>;

/** A pipeline as it was written: not checked, but for its list of steps. */
export interface Definition extends Entries {
  readonly steps: readonly Entries[];
}

/** A file that a definition names by its path, for a step that reads files of a purpose. */
export interface NamedFile {
  readonly path: string;
  readonly purpose: Purpose;
}

/** Return the entries that a text of YAML or JSON has. Raises: SyntaxError, whose message says what is wrong. */
export function readEntries(text: string): Entries {
  const read = readYaml(text);
  if (!isEntries(read)) throw new SyntaxError("There are no fields, such as model: NAME.");
  return read;
}

/** Return the pipeline that a text of YAML or JSON defines. Raises: SyntaxError, whose message says what is wrong. */
export function readDefinition(text: string): Definition {
  const read = readYaml(text);
  if (!isEntries(read) || !Array.isArray(read.steps) || read.steps.length === 0 || !read.steps.every(isEntries)) {
    throw new SyntaxError("There is no list of steps, each with a name, a kind and a request.");
  }
  return read as Definition;
}

function readYaml(text: string): unknown {
  try {
    // What is read becomes JSON at last; an alias within its own anchor does not.
    return JSON.parse(JSON.stringify(load(text, { schema: CORE_SCHEMA }) ?? null));
  } catch (error) {
    if (!(error instanceof YAMLException)) throw new SyntaxError("This cannot be written as JSON.", { cause: error });
    throw new SyntaxError(`Line ${(error.mark?.line ?? 0) + 1} is neither YAML nor JSON: ${error.reason}.`, { cause: error });
  }
}

/** Return the files that a definition names as `{file: PATH}`, each once for each purpose. */
export function namedFiles(definition: Definition): NamedFile[] {
  const files = new Map<string, NamedFile>();
  replaceFiles(definition, (file) => void files.set(keyOf(file), file));
  return [...files.values()];
}

/** Return what tells a named file from the others. */
export function keyOf({ path, purpose }: NamedFile): string {
  return `${purpose} ${path}`;
}

/** Return a definition with what `replace` returns in the place of each file that it names. */
export function replaceFiles(definition: Definition, replace: (file: NamedFile) => unknown): Definition {
  const steps = definition.steps.map((step) => {
    const purpose = Object.entries(STEP_KINDS).find(([kind]) => kind === step.kind)?.[1].purpose ?? "user_data";
    return replaceIn(step, (path) => replace({ path, purpose })) as Entries;
  });
  return { ...definition, steps };
}

function replaceIn(value: unknown, replace: (path: string) => unknown): unknown {
  if (Array.isArray(value)) return value.map((item) => replaceIn(item, replace));
  if (!isEntries(value)) return value;
  const { file, ...others } = value;
  if (typeof file === "string" && Object.keys(others).length === 0) return replace(file);
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, replaceIn(member, replace)]));
}

function isEntries(value: unknown): value is Entries {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
