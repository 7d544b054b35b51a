import { expect, it } from "vitest";

import { generates, sortModels, type Model } from "@/pages/fleet/models/served";

function model(id: string, servedBy = id, queue = "gpu.generate"): Model {
  return { id, object: "model", created: 1, owned_by: "o", serving: { model: servedBy, state: "ready", queue, workers: 1 } };
}

it("lists aliases with their model, and tuned models apart from the others", () => {
  const tuned = model("ft:chat:default::1", "chat");
  const unknown = { ...model("gone"), serving: undefined };

  const { own, tuned: trained } = sortModels([model("chat"), model("gpt-4o", "chat"), model("gpt-4", "chat"), tuned, unknown]);

  expect(own.map(({ model, aliases }) => [model.id, aliases])).toEqual([
    ["chat", ["gpt-4o", "gpt-4"]],
    ["gone", []],
  ]);
  expect(trained.map(({ model }) => model.id)).toEqual([tuned.id]);
});

it("takes models of the embedding queue and those with facts of an embedder for such that generate nothing", () => {
  const embedder = { ...model("remote"), max_model_len: 512 };

  expect([model("chat"), model("vectors", "vectors", "gpu.embed"), embedder].map(generates)).toEqual([true, false, false]);
});
