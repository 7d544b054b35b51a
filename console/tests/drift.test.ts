import { expect, it } from "vitest";

import { describeSource, EMPTY_MONITOR, formatDistance, monitorBody, trendOf, type Check, type Feature } from "@/pages/monitoring/drift";

const FEATURE: Feature = { name: "length", measure: "psi", value: 0.2, limit: 0.1, is_drift: true, baseline_texts: 60, current_texts: 60 };

function check(created_at: number, ...features: Partial<Feature>[]): Check {
  const given = features.length > 0 ? features.map((each) => ({ ...FEATURE, ...each })) : null;
  return { id: `driftcheck_${created_at}`, object: "drift_check", monitor_id: "driftmon_1", status: "completed", is_drift: true, features: given, error: null, created_at, ended_at: null };
}

it("the trend of a monitor has its distances as multiples of their limits, from the oldest check on", () => {
  const trend = trendOf([check(3, { value: 0.1 }), check(2), check(1, {}, { name: "language", limit: 0 })])!;
  expect(trend.times).toEqual([1, 3]);
  expect(trend.series.map(({ label, values }) => [label, values])).toEqual([
    ["Lengths", [2, 1]],
    ["limit", [1, 1]],
  ]);
});

it("one check is no trend", () => {
  expect(trendOf([check(2), check(1, {})])).toBeNull();
});

it.each([
  [{ type: "file", file_id: "file-1" }, "File file-1"],
  [{ type: "responses" }, "Stored responses"],
  [{ type: "stored_completions", model: "support", metadata: { team: "a", tier: "b" } }, "Stored chat completions of support with team=a, tier=b"],
])("the source %o is %s", (source, words) => {
  expect(describeSource({ source })).toBe(words);
});

it("distances have three digits", () => {
  expect([0.01234, 1.2345, 12.345].map(formatDistance)).toEqual(["0.0123", "1.23", "12.3"]);
});

it("a monitor of stored answers takes its baseline from a time, or from what it would compare now", () => {
  const form = { ...EMPTY_MONITOR, name: "n", model: " support ", metadata: "team=a", hours: "1.5" };
  const source = { type: "stored_completions", model: "support", metadata: { team: "a" } };
  expect(monitorBody(form)).toMatchObject({ source, baseline: null, window_seconds: 5_400, sample: 1_000, embedding_model: null });
  const from = new Date("2026-12-01T00:00").getTime() / 1_000;
  expect(monitorBody({ ...form, from: "2026-12-01T00:00" }).baseline).toEqual({ ...source, created_after: from, created_before: undefined });
});

it("a monitor of a file has no times", () => {
  expect(monitorBody({ ...EMPTY_MONITOR, source: "file", file: "file-1", from: "2026-12-01T00:00" })).toMatchObject({ source: { type: "file", file_id: "file-1" }, baseline: null });
});
