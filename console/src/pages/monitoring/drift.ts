import type { Schema } from "@/api/client";
import { fromLocalInput } from "@/components/address";
import type { Series } from "@/components/Chart";
import { metadataPairs } from "@/pages/jobs/address";

export type Monitor = Schema<"DriftMonitorObject">;
export type Check = Schema<"DriftCheckObject">;
export type Feature = Schema<"DriftFeature">;

/** The features of texts, each with the colour of its line in a chart. */
export const FEATURES = {
  embedding: { label: "Embeddings", colour: "--series-1" },
  length: { label: "Lengths", colour: "--series-2" },
  language: { label: "Languages", colour: "--series-3" },
  retrieval_score: { label: "Retrieval scores", colour: "--series-4" },
  output_score: { label: "Output scores", colour: "--series-5" },
} as const satisfies Readonly<Record<Feature["name"], { label: string; colour: string }>>;

/** How far the values of a feature are apart, by the measure of the feature. */
export const MEASURES = {
  energy_distance: "energy distance",
  psi: "population stability index",
} as const satisfies Readonly<Record<Feature["measure"], string>>;

/** The sources that a monitor may sample. */
export const SOURCES = [
  ["stored_completions", "Stored chat completions"],
  ["responses", "Stored responses"],
  ["file", "A file"],
] as const;

/** Return whether a check, or a baseline, goes on. */
export function isLive({ status }: Pick<Check, "status">): boolean {
  return status === "queued" || status === "in_progress";
}

/** Return a distance, or its limit, with the digits that say something. */
export function formatDistance(value: number): string {
  return value.toPrecision(3);
}

/** Return the source of a monitor in words. */
export function describeSource({ source }: Pick<Monitor, "source">): string {
  const { type, file_id: file, model, metadata } = source as { type: string; file_id?: string; model?: string; metadata?: Record<string, string> };
  if (file !== undefined) return `File ${file}`;
  const words = SOURCES.find(([name]) => name === type)?.[1] ?? type;
  const pairs = Object.entries(metadata ?? {}).map(([key, value]) => `${key}=${value}`);
  return [words, model && `of ${model}`, pairs.length > 0 && `with ${pairs.join(", ")}`].filter(Boolean).join(" ");
}

/** The trend of a monitor: the times of its checks, and the distance of each feature as a multiple of its limit. */
export interface Trend {
  times: number[];
  series: Series[];
}

/** Return the trend of checks, which are listed from the newest to the oldest; null with less than two that have completed. */
export function trendOf(checks: readonly Check[]): Trend | null {
  const done = checks.filter(({ features }) => features !== null).reverse();
  if (done.length < 2) return null;
  const series = Object.entries(FEATURES).map(([name, look]) => ({
    ...look,
    values: done.map(({ features }) => multipleOf(features!.find((feature) => feature.name === name))),
    connected: true,
  }));
  const limit = { label: "limit", colour: "--muted", values: done.map(() => 1), dashed: true };
  return { times: done.map(({ created_at }) => created_at), series: [...series.filter(({ values }) => values.some((value) => value !== null)), limit] };
}

function multipleOf(feature: Feature | undefined): number | null {
  return feature && feature.limit > 0 ? feature.value / feature.limit : null;
}

/** What the form of a new monitor asks for. Times are those of inputs. */
export interface MonitorForm {
  name: string;
  source: (typeof SOURCES)[number][0];
  model: string;
  metadata: string;
  file: string;
  hours: string;
  sample: string;
  embedding: string;
  from: string;
  until: string;
}

export const EMPTY_MONITOR: MonitorForm = {
  name: "",
  source: "stored_completions",
  model: "",
  metadata: "",
  file: "",
  hours: "24",
  sample: "1000",
  embedding: "",
  from: "",
  until: "",
};

/** Return the body that creates the monitor of a form. */
export function monitorBody(form: MonitorForm): Schema<"CreateDriftMonitor"> {
  const source = sourceOf(form);
  const times = { created_after: fromLocalInput(form.from), created_before: fromLocalInput(form.until) };
  const isOfTime = times.created_after !== undefined || times.created_before !== undefined;
  return {
    name: form.name,
    source,
    baseline: isOfTime && source.type !== "file" ? { ...source, ...times } : null,
    window_seconds: Math.round(Number(form.hours) * 3_600),
    sample: Number(form.sample),
    embedding_model: form.embedding || null,
  };
}

function sourceOf(form: MonitorForm): Schema<"CreateDriftMonitor">["source"] {
  if (form.source === "file") return { type: "file", file_id: form.file };
  const metadata = Object.fromEntries(metadataPairs(form.metadata));
  return { type: form.source, model: form.model.trim() || null, metadata: Object.keys(metadata).length > 0 ? metadata : null };
}
