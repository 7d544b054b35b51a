import { useQuery } from "@tanstack/react-query";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { Chart } from "@/components/Chart";
import { formatCompact, formatNumber, formatRate, formatShare } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Card } from "@/components/Page";
import { Figure } from "@/components/Quantity";

type Bucket = Schema<"ThroughputBucket">;

/** Milliseconds between two readings; the buckets change while lines are answered, which is no event. */
const REFRESH = 15_000;

/** The totals of some buckets. */
interface Totals {
  lines: number;
  failed: number;
  tokens: number;
}

/** Show lines and tokens of the last five minutes as figures, and those of the last day as charts. */
export function Traffic() {
  const day = useThroughput({ seconds: 86_400, step: 600 });
  const recent = useThroughput({ seconds: 300, step: 60 });
  return (
    <Loaded what="the last day" query={day}>
      {({ data }) => <Figures day={data} recent={recent.data?.data} />}
    </Loaded>
  );
}

function Figures({ day, recent }: { day: readonly Bucket[]; recent: readonly Bucket[] | undefined }) {
  const today = totalsOf(day);
  return (
    <div className="stack">
      <div className="grid figures">
        {recent && <Rates buckets={recent} />}
        <Card>
          <Figure name="Lines in 24 hours" value={formatNumber(today.lines)} remark={`${formatCompact(today.tokens)} tokens`} />
        </Card>
        <Card>
          <Figure
            name="Failed in 24 hours"
            value={<span className={today.failed > 0 ? "bad" : undefined}>{formatNumber(today.failed)}</span>}
            remark={today.lines > 0 ? `${formatShare(today.failed / today.lines)} of the lines` : "no lines"}
          />
        </Card>
      </div>
      {today.lines > 0 && <Charts buckets={day} />}
    </div>
  );
}

function useThroughput(query: { seconds: number; step: number }) {
  return useQuery({
    ...get("/v1/throughput", { query }),
    refetchInterval: REFRESH,
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

function Charts({ buckets }: { buckets: readonly Bucket[] }) {
  const times = buckets.map((bucket) => bucket.start_time);
  return (
    <div className="grid halves">
      <Card>
        <Chart
          title="Lines, 10 minutes each"
          x={times}
          series={[
            { label: "answered", colour: "--accent", values: buckets.map((bucket) => bucket.lines - bucket.failed) },
            { label: "failed", colour: "--bad", values: buckets.map((bucket) => bucket.failed) },
          ]}
        />
      </Card>
      <Card>
        <Chart
          title="Tokens, 10 minutes each"
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
