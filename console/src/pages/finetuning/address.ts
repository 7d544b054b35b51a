import { readText } from "@/components/address";

/** The parameters of the address of the page of a fine-tuning job. */
interface TuningSearch {
  /** The id of the job that it is compared with. */
  baseline?: string;
}

/** Read the parameters of the address of the page of a fine-tuning job. */
export function tuningSearch(given: Record<string, unknown>): TuningSearch {
  return { baseline: readText(given.baseline) };
}

/** The parameters of the address of the page that makes a fine-tuning job. */
interface NewTuningSearch {
  /** The model to train. */
  model?: string;
  /** The id of the file to train on. */
  file?: string;
}

/** Read the parameters of the address of the page that makes a fine-tuning job. */
export function newTuningSearch(given: Record<string, unknown>): NewTuningSearch {
  const text = (name: string) => (typeof given[name] === "string" && given[name] !== "" ? given[name] : undefined);
  return { model: text("model"), file: text("file") };
}
