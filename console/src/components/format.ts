/** Numbers, sizes and times as people read them: always with a unit, never with more digits than say something. */

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const DOLLARS = new Intl.NumberFormat("en", { style: "currency", currency: "USD" });
const SMALL_DOLLARS = new Intl.NumberFormat("en", { style: "currency", currency: "USD", maximumFractionDigits: 6 });
const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const EXACT = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "long" });

const SIZES = ["B", "kB", "MB", "GB", "TB", "PB"] as const;
const SPANS = [
  ["d", 86_400],
  ["h", 3_600],
  ["min", 60],
  ["s", 1],
] as const;
const UNITS = [
  ["year", 31_557_600],
  ["month", 2_629_800],
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
  ["second", 1],
] as const;

/** Return a whole number with separators: 12,345. */
export function formatNumber(value: number): string {
  return WHOLE.format(value);
}

/** Return a number in at most four digits: 12.3K. */
export function formatCompact(value: number): string {
  return COMPACT.format(value);
}

/** Return a size in bytes with its unit: 1.5 MB. */
export function formatBytes(bytes: number): string {
  const power = bytes < 1_000 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), SIZES.length - 1);
  const value = bytes / 1_000 ** power;
  return `${power > 0 && value < 100 ? value.toFixed(1) : WHOLE.format(value)} ${SIZES[power] ?? "B"}`;
}

/** Return a span of seconds in its two largest units: 2 h 5 min. */
export function formatDuration(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1_000)} ms`;
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  let rest = Math.round(seconds);
  const parts: string[] = [];
  for (const [unit, size] of SPANS) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count > 0) parts.push(`${WHOLE.format(count)} ${unit}`);
    else if (parts.length > 0) break;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

/** Return a rate: 1,234 lines/s, 0.25 lines/s. */
export function formatRate(perSecond: number, unit: string): string {
  const digits = perSecond >= 100 ? 0 : perSecond >= 1 ? 1 : 2;
  const value = perSecond.toLocaleString("en", { maximumFractionDigits: digits });
  return `${value} ${unit}/s`;
}

/** Return a share of one as per cent: 12.5 %. */
export function formatShare(share: number): string {
  return `${Number((share * 100).toFixed(1))} %`;
}

/** Return an amount of US dollars: $1,234.50, and of less than a cent all that is counted: $0.0042. */
export function formatDollars(amount: number): string {
  return (Math.abs(amount) < 0.01 ? SMALL_DOLLARS : DOLLARS).format(amount);
}

/** Return a count with its noun: 1 line, 2 lines. */
export function formatCount(count: number, singular: string, plural = `${singular}s`, format = formatNumber): string {
  return `${format(count)} ${count === 1 ? singular : plural}`;
}

/** Return a time relative to `now`, both in seconds of Unix: 5 minutes ago, in 2 hours. */
export function formatRelative(at: number, now: number): string {
  const distance = at - now;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(distance) >= size) ?? (["second", 1] as const);
  const count = Math.trunc(distance / size);
  return unit === "second" && Math.abs(count) < 5 ? "now" : RELATIVE.format(count, unit);
}

/** Return a time of Unix as date and time in the zone of the reader, with the zone's name. */
export function formatExact(at: number): string {
  return EXACT.format(at * 1_000);
}

/** Control characters, and those that change the order in which letters are shown. */
const INVISIBLE = /[\p{Cc}\p{Bidi_Control}]/gu;

/** Return a name as it is, with invisible characters written out: one that turns letters around cannot disguise it. */
export function formatName(name: string): string {
  return name.replaceAll(INVISIBLE, (character) => `[U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}]`);
}

/** Return the words of an identifier: in_progress becomes in progress. */
export function words(identifier: string): string {
  return identifier.replaceAll(/[_-]+/g, " ");
}
