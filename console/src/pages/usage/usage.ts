import type { Answer } from "@/api/get";
import type { Series } from "@/components/Chart";

/** The answers of the admin API that a table of usage is made of, over the same days. */
export interface UsageAnswers {
  completions: Answer<"/v1/organization/usage/completions">["data"];
  embeddings: Answer<"/v1/organization/usage/embeddings">["data"];
  costs: Answer<"/v1/organization/costs">["data"];
}

/** The ways to group usage, with the dimensions of the API. A key is found in its project. */
export const GROUPINGS = [
  { id: "project", name: "Project", usage: ["project_id"], costs: ["project_id"] },
  { id: "model", name: "Model", usage: ["model"], costs: ["line_item"] },
  { id: "key", name: "Key", usage: ["project_id", "api_key_id"], costs: ["project_id", "api_key_id"] },
] as const;
export type Grouping = (typeof GROUPINGS)[number]["id"];

/** What work took. The cost is in US dollars; null where nothing has a price. */
export interface Amounts {
  requests: number;
  inputTokens: number;
  cachedTokens: number;
  outputTokens: number;
  cost: number | null;
}

/** The usage of a group. */
export interface UsageRow extends Amounts {
  /** The id of a key, or the name of a model; null for work that has none, and for projects. */
  id: string | null;
  /** The project, where usage is grouped by projects or by keys. */
  projectId: string | null;
  /** By the beginning of the day, in seconds of Unix. */
  days: ReadonlyMap<number, Amounts>;
}

/** Usage by group, the most expensive first, with its sums. */
export interface UsageTable {
  days: readonly number[];
  rows: readonly UsageRow[];
  total: Amounts;
}

/** The dimensions of a result of any of the answers. */
interface Dimensions {
  project_id?: string | null;
  api_key_id?: string | null;
  model?: string | null;
  line_item?: string | null;
}

const NOTHING: Amounts = { requests: 0, inputTokens: 0, cachedTokens: 0, outputTokens: 0, cost: null };
/** Costs are counted in millionths of a dollar; to round to them keeps sums exact. */
const MICROS = 1_000_000;

/** Return the sums of two amounts, of which the second may lack some. */
export function add(sum: Amounts, more: Partial<Amounts>): Amounts {
  const cost = more.cost ?? null;
  return {
    requests: sum.requests + (more.requests ?? 0),
    inputTokens: sum.inputTokens + (more.inputTokens ?? 0),
    cachedTokens: sum.cachedTokens + (more.cachedTokens ?? 0),
    outputTokens: sum.outputTokens + (more.outputTokens ?? 0),
    cost: cost === null ? sum.cost : Math.round(((sum.cost ?? 0) + cost) * MICROS) / MICROS,
  };
}

/** Return all tokens, of input and output. */
export function tokensOf({ inputTokens, outputTokens }: Amounts): number {
  return inputTokens + outputTokens;
}

/** Make a table of the answers: rows by group with their amounts by day. */
export function tabulate({ completions, embeddings, costs }: UsageAnswers): UsageTable {
  const groups = new Map<string, { id: string | null; projectId: string | null; days: Map<number, Amounts> }>();

  function note(day: number, result: Dimensions, amounts: Partial<Amounts>) {
    const projectId = result.project_id ?? null;
    const id = result.api_key_id ?? result.model ?? result.line_item ?? null;
    const name = `${projectId ?? ""} ${id ?? ""}`;
    const group = groups.get(name) ?? { id, projectId, days: new Map<number, Amounts>() };
    groups.set(name, group);
    group.days.set(day, add(group.days.get(day) ?? NOTHING, amounts));
  }

  for (const { start_time: day, results } of completions) {
    for (const each of results) {
      const { input_tokens: inputTokens, input_cached_tokens: cachedTokens, output_tokens: outputTokens } = each;
      note(day, each, { requests: each.num_model_requests, inputTokens, cachedTokens, outputTokens });
    }
  }
  for (const { start_time: day, results } of embeddings) {
    for (const each of results) note(day, each, { requests: each.num_model_requests, inputTokens: each.input_tokens });
  }
  for (const { start_time: day, results } of costs) {
    for (const each of results) note(day, each, { cost: each.amount?.value ?? null });
  }
  const rows = [...groups.values()].map((group): UsageRow => ({ ...group, ...[...group.days.values()].reduce(add, NOTHING) }));
  rows.sort((one, other) => (other.cost ?? 0) - (one.cost ?? 0) || tokensOf(other) - tokensOf(one));
  return { days: costs.map(({ start_time: day }) => day), rows, total: rows.reduce<Amounts>(add, NOTHING) };
}

/** The colours of the groups of a chart; those behind them share the last one. */
const COLOURS = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6", "--series-7"] as const;

/** Return the series of a chart of days: one for each of the first groups, and one for all others together. */
export function seriesOf({ days, rows }: UsageTable, nameOf: (row: UsageRow) => string, valueOf: (amounts: Amounts) => number): Series[] {
  const valuesOf = (row: UsageRow) => days.map((day) => valueOf(row.days.get(day) ?? NOTHING));
  const others = rows.slice(COLOURS.length).map(valuesOf);
  const series: Series[] = COLOURS.slice(0, rows.length).map((colour, n) => ({ label: nameOf(rows[n]!), colour, values: valuesOf(rows[n]!) }));
  if (others.length === 0) return series;
  const values = days.map((_, day) => others.reduce((sum, each) => sum + each[day]!, 0));
  return [...series, { label: `${others.length} others`, colour: "--muted", values }];
}

/** Write a table as CSV: a line for each day and group with usage. Costs without a price are empty. */
export function asCsv({ days, rows }: UsageTable, grouping: Grouping, nameOf: (row: UsageRow) => string): string {
  const head = ["day", grouping, "name", "requests", "input_tokens", "cached_tokens", "output_tokens", "cost_usd"];
  const lines = days.flatMap((day) =>
    rows.flatMap((row) => {
      const amounts = row.days.get(day);
      if (amounts === undefined) return [];
      const { requests, inputTokens, cachedTokens, outputTokens, cost } = amounts;
      const id = row.id ?? row.projectId;
      return [[new Date(day * 1_000).toISOString().slice(0, 10), cell(id ?? ""), cell(nameOf(row)), requests, inputTokens, cachedTokens, outputTokens, cost ?? ""]];
    }),
  );
  return [head, ...lines].map((line) => line.join(",") + "\r\n").join("");
}

/** Write a text as a cell. One that a spreadsheet would take for a formula gets a leading apostrophe. */
function cell(text: string): string {
  return `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
}
