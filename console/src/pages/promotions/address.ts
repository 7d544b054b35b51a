import { readText } from "@/components/address";

/** The parameters of the address of the page that makes a promotion. */
interface NewPromotionSearch {
  /** The alias to move. */
  alias?: string;
  /** The tuned model to take into production. */
  model?: string;
}

/** Read from the address what a new promotion is to move. */
export function newPromotionSearch(given: Record<string, unknown>): NewPromotionSearch {
  return { alias: readText(given.alias), model: readText(given.model) };
}
