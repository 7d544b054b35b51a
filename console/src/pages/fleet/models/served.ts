import { useQuery } from "@tanstack/react-query";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";

export type Model = Schema<"Model">;

/** A model with the other names that mean it. */
export interface NamedModel {
  model: Model;
  aliases: readonly string[];
}

/** The models of a project by what they are. */
interface ServedModels {
  /** Models of the deployment. */
  own: readonly NamedModel[];
  /** Models that the project has trained. */
  tuned: readonly NamedModel[];
}

/** The queue of models that embed or re-rank. */
const EMBEDDING_QUEUE = "gpu.embed";
/** Milliseconds between two readings: loading a model is no event. */
const REFRESH = 10_000;

/** Query the models with where each is served. Pages that ask for it share one answer. */
export function useModels() {
  return useQuery({
    ...get("/v1/models", { query: { include: "serving" } }),
    refetchInterval: REFRESH,
  });
}

/** Return whether a name is one that fine-tuning gives. */
export function isTuned(name: string): boolean {
  return name.startsWith("ft:");
}

/** Return whether a model makes vectors or ranks texts, as far as the list says. */
export function embeds(model: Model): boolean {
  return model.serving?.queue === EMBEDDING_QUEUE;
}

/** Return whether a model generates text, as far as the list says. */
export function generates(model: Model): boolean {
  return !embeds(model) && (model.max_model_len ?? null) === null;
}

/** Return whether a name is an alias of another model. */
export function isAlias(model: Model): boolean {
  return !isTuned(model.id) && model.serving !== undefined && model.serving !== null && model.serving.model !== model.id;
}

/** Sort models into those of the deployment, each with its aliases, and those that were trained here. */
export function sortModels(models: readonly Model[]): ServedModels {
  const aliases = models.filter(isAlias);
  const named = models
    .filter((model) => !isAlias(model))
    .map((model) => ({ model, aliases: aliases.filter(({ serving }) => serving?.model === model.id).map(({ id }) => id) }));
  return { own: named.filter(({ model }) => !isTuned(model.id)), tuned: named.filter(({ model }) => isTuned(model.id)) };
}
