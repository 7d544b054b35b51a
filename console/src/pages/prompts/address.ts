import { readText } from "@/components/address";

/** What the list of prompts shows: those of a name or all, and the archived ones instead of the others. */
export interface PromptsSearch {
  name?: string;
  archived?: true;
}

/** Read from the address what the list of prompts shows. */
export function promptsSearch(given: Record<string, unknown>): PromptsSearch {
  return { name: readText(given.name), archived: given.archived === true ? true : undefined };
}

const TABS = ["try", "compare", "versions", "use"] as const;

/** The parameters of the address of a prompt. */
export interface PromptSearch {
  /** The open tab; the content unless it is named. */
  tab?: (typeof TABS)[number];
  /** The number or the label of the version that is shown; the default one unless it is named. */
  version?: string;
  /** The number of the version that it is compared with. */
  against?: string;
}

/** Read the parameters of the address of a prompt. */
export function promptSearch(given: Record<string, unknown>): PromptSearch {
  return { tab: TABS.find((each) => each === given.tab), version: readText(given.version), against: readText(given.against) };
}

/** Read the parameters of the address of the page that makes a version: the version that it begins with. */
export function newVersionSearch(given: Record<string, unknown>): { from?: string } {
  return { from: readText(given.from) };
}
