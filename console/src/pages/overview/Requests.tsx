import type { Schema } from "@/api/client";
import { formatCompact, formatDuration, formatNumber, formatShare } from "@/components/format";
import { ObjectLink } from "@/components/ObjectLink";
import { Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";

type Requests = Schema<"InteractiveRequests">;
type Measure = Schema<"RequestMeasure">;

const COLUMNS: readonly Column<Requests>[] = [
  {
    id: "model",
    header: "Model",
    cell: ({ model }) => (model === "other" ? "Other names" : <ObjectLink id={model} kind="model" />),
    sort: ({ model }) => model,
  },
  { id: "requests", header: "Requests", cell: ({ requests }) => formatNumber(requests), sort: ({ requests }) => requests, align: "end" },
  { id: "errors", header: "Errors", cell: (row) => <Errors row={row} />, sort: failedOf, align: "end" },
  { id: "first", header: "First token", cell: (row) => seconds(row.first_token), sort: (row) => row.first_token.p95, align: "end" },
  { id: "duration", header: "Whole answer", cell: (row) => seconds(row.duration), sort: (row) => row.duration.p95, align: "end" },
  {
    id: "speed",
    header: "Tokens/s",
    cell: ({ speed }) => (speed.p50 === null ? "–" : formatNumber(Math.round(speed.p50))),
    sort: ({ speed }) => speed.p50,
    align: "end",
  },
  {
    id: "tokens",
    header: "Tokens",
    cell: (row) => `${formatCompact(row.input_tokens)} in, ${formatCompact(row.output_tokens)} out`,
    sort: (row) => row.input_tokens + row.output_tokens,
    align: "end",
    wide: true,
  },
];

/** Show the interactive requests of a span by model: times as "half of them · all but a twentieth". */
export function InteractiveRequests({ rows, span }: { rows: readonly Requests[]; span: string }) {
  return (
    <Section title={`Interactive requests in ${span}`}>
      <Table label="Interactive requests" columns={COLUMNS} rows={rows} rowKey={(row) => row.model} />
      <p className="muted">Times: half of the requests · 95 %. An answer counts up to 10 seconds after its end.</p>
    </Section>
  );
}

function failedOf({ errors }: Requests): number {
  return Object.values(errors).reduce((sum, count) => sum + count, 0);
}

function Errors({ row }: { row: Requests }) {
  const failed = failedOf(row);
  if (failed === 0) return <>0</>;
  const codes = Object.entries(row.errors).map(([code, count]) => `${code}: ${count}`);
  return (
    <span className="bad" title={codes.join(", ")}>
      {formatNumber(failed)} ({formatShare(failed / row.requests)})
    </span>
  );
}

function seconds({ p50, p95 }: Measure): string {
  return p50 === null || p95 === null ? "–" : `${formatDuration(p50)} · ${formatDuration(p95)}`;
}
