import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { Chart } from "@/components/Chart";
import { Field, Select } from "@/components/Field";
import { formatCompact, formatCount, formatNumber, formatRate, formatShare } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Card } from "@/components/Page";
import { Figure } from "@/components/Quantity";
import { useModels } from "@/pages/fleet/models/served";

import { overviewSearch, spanOf, SPANS, type Span } from "./address";
import { InteractiveRequests } from "./Requests";

const route = getRouteApi("/");

type Bucket = Schema<"ThroughputBucket">;

/** Milliseconds between two readings; the buckets change while lines are answered, which is no event. */
const REFRESH = 15_000;

/** The totals of some buckets. */
interface Totals {
  lines: number;
  failed: number;
  tokens: number;
}

/** Show lines and tokens of the last five minutes as figures, and those of the last hour, day or week as charts. */
export function Traffic() {
  const { span: chosen, model } = route.useSearch();
  const span = spanOf(chosen);
  const answered = useThroughput({ seconds: span.seconds, step: span.step, model });
  const recent = useThroughput({ seconds: 300, step: 60, model });
  return (
    <div className="stack">
      <Choice span={span} model={model} />
      <Loaded what="the last hours" query={answered}>
        {({ data, interactive }) => (
          <>
            <Figures buckets={data} span={span} recent={recent.data?.data} />
            {interactive.length > 0 && <InteractiveRequests rows={interactive} span={span.name} />}
          </>
        )}
      </Loaded>
    </div>
  );
}

/** Choose the span and the model of the charts; both stand in the address. */
function Choice({ span, model }: { span: Span; model: string | undefined }) {
  const navigate = route.useNavigate();
  const models = useModels();
  const names = (models.data?.data ?? []).map(({ id }) => [id, id] as const);
  return (
    <div className="filters">
      <Field label="Span">
        <Select
          value={span.id}
          options={SPANS.map(({ id, name }) => [id, name] as const)}
          onChange={(chosen) => void navigate({ search: (search) => ({ ...search, ...overviewSearch({ ...search, span: chosen }) }), replace: true })}
        />
      </Field>
      <Field label="Lines of">
        <Select
          value={model ?? ""}
          options={[["", "All models"], ...names]}
          onChange={(chosen) => void navigate({ search: (search) => ({ ...search, model: chosen || undefined }), replace: true })}
        />
      </Field>
    </div>
  );
}

interface FiguresProps {
  buckets: readonly Bucket[];
  span: Span;
  recent: readonly Bucket[] | undefined;
}

function Figures({ buckets, span, recent }: FiguresProps) {
  const sums = totalsOf(buckets);
  return (
    <div className="stack">
      <div className="grid figures">
        {recent && <Rates buckets={recent} />}
        <Card>
          <Figure name={`Lines in ${span.name}`} value={formatNumber(sums.lines)} remark={`${formatCompact(sums.tokens)} tokens`} />
        </Card>
        <Card>
          <Figure
            name={`Failed in ${span.name}`}
            value={<span className={sums.failed > 0 ? "bad" : undefined}>{formatNumber(sums.failed)}</span>}
            remark={sums.lines > 0 ? `${formatShare(sums.failed / sums.lines)} of the lines` : "no lines"}
          />
        </Card>
      </div>
      {sums.lines > 0 && <Charts buckets={buckets} step={span.step} />}
    </div>
  );
}

function useThroughput(query: { seconds: number; step: number; model: string | undefined }) {
  return useQuery({
    ...get("/v1/throughput", { query }),
    refetchInterval: REFRESH,
    placeholderData: keepPreviousData,
  });
}

/** Show the rates of the minutes before the current one, which has not ended. */
function Rates({ buckets }: { buckets: readonly Bucket[] }) {
  const ended = buckets.slice(0, -1);
  const seconds = ended.reduce((sum, bucket) => sum + bucket.end_time - bucket.start_time, 0);
  const { lines, tokens } = totalsOf(ended);
  const remark = `over the last ${seconds / 60} minutes`;
  return (
    <>
      <Card>
        <Figure name="Lines" value={formatRate(lines / seconds, "lines")} remark={remark} />
      </Card>
      <Card>
        <Figure name="Tokens" value={formatRate(tokens / seconds, "tokens")} remark={remark} />
      </Card>
    </>
  );
}

function Charts({ buckets, step }: { buckets: readonly Bucket[]; step: number }) {
  const each = step < 3_600 ? formatCount(step / 60, "minute") : formatCount(step / 3_600, "hour");
  const times = buckets.map((bucket) => bucket.start_time);
  return (
    <div className="grid halves">
      <Card>
        <Chart
          bars
          title={`Lines, ${each} each`}
          x={times}
          series={[
            { label: "answered", colour: "--accent", values: buckets.map((bucket) => bucket.lines - bucket.failed) },
            { label: "failed", colour: "--bad", values: buckets.map((bucket) => bucket.failed) },
          ]}
        />
      </Card>
      <Card>
        <Chart
          bars
          title={`Tokens, ${each} each`}
          x={times}
          series={[
            { label: "input", colour: "--accent", values: buckets.map((bucket) => bucket.input_tokens) },
            { label: "output", colour: "--good", values: buckets.map((bucket) => bucket.output_tokens) },
          ]}
        />
      </Card>
    </div>
  );
}

function totalsOf(buckets: readonly Bucket[]): Totals {
  return buckets.reduce<Totals>(
    (sum, bucket) => ({
      lines: sum.lines + bucket.lines,
      failed: sum.failed + bucket.failed,
      tokens: sum.tokens + bucket.input_tokens + bucket.output_tokens,
    }),
    { lines: 0, failed: 0, tokens: 0 },
  );
}
