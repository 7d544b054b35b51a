import { readText } from "@/components/address";

/** Read the address of the page of aliases: the alias whose moves are shown, all without one. */
export function aliasesSearch({ alias }: Record<string, unknown>): { alias?: string } {
  return { alias: readText(alias) };
}
