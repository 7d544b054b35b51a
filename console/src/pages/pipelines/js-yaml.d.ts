/** What the console uses of js-yaml, which has no types of its own. */
declare module "js-yaml" {
  /** The types of JSON: a date stays a text. */
  export const CORE_SCHEMA: object;
  export class YAMLException extends Error {
    readonly reason: string;
    readonly mark?: { readonly line: number };
  }
  export function load(text: string, options: { schema: object }): unknown;
}
