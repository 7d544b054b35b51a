/** A kind of job, as the server describes it in `api/openapi.py`. */
export interface Kind {
  name: string;
  label: string;
  /** Ids of its jobs start with this. */
  prefix: string;
  /** The types of the events that tell of its jobs. */
  events: readonly string[];
  /** The resources whose answers change with these events, beside the jobs. */
  resources: readonly string[];
  has_lines: boolean;
  retryable: boolean;
}

/** Replaced in the build by the extension `x-kinds` of the OpenAPI document: see `vite.config.ts`. */
declare const __KINDS__: readonly Kind[];

/** The kinds of jobs. */
export const KINDS = __KINDS__;

const BY_NAME = new Map(KINDS.map((kind) => [kind.name, kind]));

/** Return the kind of a job; undefined where only another version knows it. */
export function kindOf({ kind }: { kind: string }): Kind | undefined {
  return BY_NAME.get(kind);
}
