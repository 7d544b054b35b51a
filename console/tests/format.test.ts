import { describe, expect, it } from "vitest";

import {
  formatBytes,
  formatCompact,
  formatCount,
  formatDollars,
  formatDuration,
  formatName,
  formatRate,
  formatRelative,
  formatShare,
  words,
} from "@/components/format";

describe("numbers have their unit", () => {
  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1_000, "1.0 kB"],
    [1_500_000, "1.5 MB"],
    [123_456_789, "123 MB"],
    [5e18, "5,000 PB"],
  ])("writes %d bytes as %s", (bytes, text) => expect(formatBytes(bytes)).toBe(text));

  it.each([
    [0.25, "250 ms"],
    [1.5, "1.5 s"],
    [59, "59 s"],
    [60, "1 min"],
    [3_725, "1 h 2 min"],
    [86_400, "1 d"],
    [90_061, "1 d 1 h"],
    [86_460, "1 d"],
  ])("writes %d seconds as %s", (seconds, text) => expect(formatDuration(seconds)).toBe(text));

  it.each([
    [0, "$0.00"],
    [0.0042, "$0.0042"],
    [0.404315, "$0.40"],
    [1_234.567, "$1,234.57"],
  ])("writes %d dollars as %s", (amount, text) => expect(formatDollars(amount)).toBe(text));

  it("shortens rates, counts and shares", () => {
    expect(formatRate(1_234.5, "lines")).toBe("1,235 lines/s");
    expect(formatRate(0.256, "lines")).toBe("0.26 lines/s");
    expect(formatCompact(12_345)).toBe("12.3K");
    expect(formatShare(0.125)).toBe("12.5 %");
    expect(formatCount(1, "line")).toBe("1 line");
    expect(formatCount(2, "batch", "batches")).toBe("2 batches");
    expect(formatCount(12_345, "token", undefined, formatCompact)).toBe("12.3K tokens");
    expect(words("in_progress")).toBe("in progress");
  });
});

describe("times are relative", () => {
  it.each([
    [1_000, "now"],
    [999, "now"],
    [970, "30 seconds ago"],
    [1_000 - 7_300, "2 hours ago"],
    [1_000 + 86_400 * 3, "in 3 days"],
  ])("writes %d at 1000 as %s", (at, text) => expect(formatRelative(at, 1_000)).toBe(text));
});

it("writes invisible characters of names out, and leaves letters and emoji as they are", () => {
  expect(formatName("photo\u202Egnp.exe\n")).toBe("photo[U+202E]gnp.exe[U+000A]");
  expect(formatName("שלום 👩‍🚀.txt")).toBe("שלום 👩‍🚀.txt");
});
