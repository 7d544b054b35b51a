/** The parameters of the address of the models' page. */
interface ModelsSearch {
  /** The model whose facts are open. */
  model?: string;
}

/** Read the parameters of the address of the models' page. */
export function modelsSearch(given: Record<string, unknown>): ModelsSearch {
  return typeof given.model === "string" && given.model !== "" ? { model: given.model } : {};
}
