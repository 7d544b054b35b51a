import { expect, it, vi } from "vitest";

vi.stubGlobal("matchMedia", () => ({ matches: false, addEventListener: () => undefined, removeEventListener: () => undefined }));
const { stack } = await import("@/components/Chart");

it("stacks bars on top of each other", () => {
  expect(stack([[1, null, 3], [10, 20, null]])).toEqual([[1, 0, 3], [11, 20, 3]]);
  expect(stack([])).toEqual([]);
});
