import { expect, test } from "vitest";

import type { Schema } from "@/api/client";
import { isIdle } from "@/pages/fleet/steering";

function remaining(running: number, other: number, heartbeats: Record<string, number>): Schema<"Remaining"> {
  return { object: "pause.remaining", kind: "worker", name: "gpu-1", running, other_work: other, heartbeats };
}

test("a target is idle when nothing runs and its workers have sent three heartbeats since the pause", () => {
  const first = remaining(2, 1, { "gpu-1": 10 });

  expect(isIdle(first, remaining(0, 0, { "gpu-1": 12 }))).toBe(false);
  expect(isIdle(first, remaining(0, 0, { "gpu-1": 13 }))).toBe(true);
  expect(isIdle(first, remaining(1, 0, { "gpu-1": 13 }))).toBe(false);
  expect(isIdle(first, remaining(0, 1, { "gpu-1": 13 }))).toBe(false);
});

test("a worker that has left is not waited for", () => {
  expect(isIdle(remaining(2, 0, { "gpu-1": 10 }), remaining(0, 0, {}))).toBe(true);
});
