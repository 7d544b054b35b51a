import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";

import { get } from "@/api/get";
import { Failure } from "@/components/Failure";
import { Field, Select } from "@/components/Field";
import { formatCount, formatExact, words } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Section } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { Table, type Column } from "@/components/Table";

import { hasEnded, type Comparison, type Run } from "./evals";
import { Interval, signed, TONES } from "./Interval";
import { Regressions } from "./Regressions";

const route = getRouteApi("/evals/$evalId/runs/$runId");
const LISTED = 100;

type Row = Comparison["data"][number];

/** Compare a run with another one of its evaluation that has ended. */
export function ComparisonTab({ run }: { run: Run }) {
  const search = route.useSearch();
  const navigate = route.useNavigate();
  const path = { eval_id: run.eval_id };
  const query = { limit: LISTED, order: "desc" } as const;
  const runs = useQuery(get("/v1/evals/{eval_id}/runs", { path, query }));
  const others = (runs.data?.data ?? []).filter((other) => other.id !== run.id && hasEnded(other));
  const baseline = search.baseline ?? (others.find(({ created_at }) => created_at <= run.created_at) ?? others[0])?.id;
  const options = others.map((other): [string, string] => [other.id, `${other.name || other.id}, ${other.model ?? "samples"}, ${formatExact(other.created_at)}`]);
  if (!hasEnded(run)) return <p className="muted">A run is compared once it has ended.</p>;
  return (
    <div className="stack">
      {runs.isError && <Failure title="The runs could not be listed" error={runs.error} />}
      <Field label="Compare with" hint="The runs are compared over the items that both have.">
        <Select
          value={baseline ?? ""}
          options={[["", others.length > 0 ? "Choose a run …" : "No other run has ended yet"], ...options]}
          onChange={(chosen) => void navigate({ search: (search) => ({ ...search, baseline: chosen || undefined }), replace: true })}
        />
      </Field>
      {baseline && <Compared run={run} baseline={baseline} />}
      <Snippet label="Command" text={`nightmill evals compare ${baseline ?? "RUN"} ${run.id} --report report.html`} />
    </div>
  );
}

function Compared({ run, baseline }: { run: Run; baseline: string }) {
  const params = { path: { eval_id: run.eval_id, run_id: run.id }, query: { baseline } };
  const comparison = useQuery({
    ...get("/v1/evals/{eval_id}/runs/{run_id}/comparison", params),
    staleTime: Infinity,
  });
  return (
    <Loaded what="the comparison" query={comparison}>
      {(comparison) => <Differences comparison={comparison} evalId={run.eval_id} />}
    </Loaded>
  );
}

function Differences({ comparison, evalId }: { comparison: Comparison; evalId: string }) {
  const { items, samples, only_in_run, only_in_baseline, data } = comparison;
  if (items === 0) return <p>The runs have no item in common.</p>;
  const scale = Math.max(...data.flatMap(({ low, high }) => [Math.abs(low), Math.abs(high)]), Number.MIN_VALUE);
  return (
    <>
      <p className="muted">
        {formatCount(items, "item")} in both runs{samples > items && `, ${formatCount(samples, "sample")}`}
        {only_in_run > 0 && `; ${formatCount(only_in_run, "item")} only in this one`}
        {only_in_baseline > 0 && `; ${formatCount(only_in_baseline, "item")} only in the other`}. An interval holds the difference
        of the means with 95 %; p is how likely so large a difference is by chance, corrected for the number of criteria. A verdict
        needs 20 items, an interval without 0, and p below 0.05.
      </p>
      <Table label="Comparison by criterion" columns={columnsOf(scale)} rows={data} rowKey={(row) => row.criterion} />
      <Section title="Largest regressions">
        <Regressions comparison={comparison} evalId={evalId} />
      </Section>
    </>
  );
}

function columnsOf(scale: number): Column<Row>[] {
  return [
    { id: "criterion", header: "Criterion", cell: (row) => <span className="break">{row.criterion}</span>, sort: (row) => row.criterion },
    { id: "baseline", header: "Other run", cell: (row) => row.baseline.toFixed(3), sort: (row) => row.baseline, align: "end", wide: true },
    { id: "run", header: "This run", cell: (row) => row.run.toFixed(3), sort: (row) => row.run, align: "end", wide: true },
    {
      id: "difference",
      header: "Difference",
      cell: (row) => <span className={TONES[row.verdict]}>{signed(row.difference)}</span>,
      sort: (row) => row.difference,
      align: "end",
    },
    { id: "interval", header: "95 % interval", cell: (row) => <Interval row={row} tone={TONES[row.verdict]} scale={scale} /> },
    { id: "changed", header: "Improved / regressed", cell: (row) => `${row.better} / ${row.worse}`, align: "end", wide: true },
    { id: "p", header: "p", cell: (row) => (row.p_adjusted < 0.001 ? "<0.001" : row.p_adjusted.toFixed(3)), sort: (row) => row.p_adjusted, align: "end" },
    {
      id: "verdict",
      header: "Verdict",
      cell: (row) => (
        <>
          <span className={TONES[row.verdict]}>{words(row.verdict)}</span>
          {row.items_needed !== null && `, about ${formatCount(row.items_needed, "more item")}`}
        </>
      ),
      sort: (row) => row.verdict,
    },
  ];
}
