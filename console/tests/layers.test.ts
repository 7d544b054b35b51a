import { expect, it } from "vitest";

import { layers } from "@/components/layers";

function layersOf(edges: Record<string, string[]>): string[][] {
  return layers(Object.entries(edges).map(([id, after]) => ({ id, after }))).map((layer) => layer.map(({ id }) => id));
}

it("a node stands behind all that it waits for, of which those that are not there are left out", () => {
  expect(layersOf({ alias: ["version"], version: ["job"], job: ["data", "base"], data: [], base: ["gone"] })).toEqual([["data", "base"], ["job"], ["version"], ["alias"]]);
});

it("nodes in a circle are drawn all the same", () => {
  expect(layersOf({ a: ["b"], b: ["a"], c: ["a"] }).flat().sort()).toEqual(["a", "b", "c"]);
  expect(layersOf({ a: ["a"] })).toEqual([["a"]]);
});
