import { useQueries } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useMemo } from "react";

import { save } from "@/api/download";
import { getAllAsAdmin } from "@/api/get";
import { useSession } from "@/api/session";
import { AdminGate } from "@/components/AdminGate";
import { Button } from "@/components/Button";
import { Chart } from "@/components/Chart";
import { Empty } from "@/components/Empty";
import { Field, Select } from "@/components/Field";
import { formatDollars, formatName, formatNumber, formatShare } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Card, Page } from "@/components/Page";
import { Figure, Quantity } from "@/components/Quantity";
import { Table, type Column } from "@/components/Table";
import { useNow } from "@/components/Time";
import { useProjectNames } from "@/pages/organization/projects";

import { spanOf, SPANS, usageSearch, type Span } from "./address";
import { asCsv, GROUPINGS, seriesOf, tabulate, tokensOf, type Grouping, type UsageAnswers, type UsageRow } from "./usage";

const route = getRouteApi("/usage");

const DAY = 86_400;
/** Milliseconds between two readings; usage is no event. */
const REFRESH = 60_000;
/** Days on a page of the API at most. */
const PAGE = 31;
/** Projects whose keys are named: a request each. */
const MAX_NAMED_PROJECTS = 20;

const SDK = `usage = client.admin.organization.usage
page = usage.completions(start_time=1793491200, group_by=["model"])`;

/** Show what the organization has used and what it costs, by day and by project, model or key. */
export default function Usage() {
  const { adminKey } = useSession();
  const { span: chosen, by = "project", project } = route.useSearch();
  const span = spanOf(chosen);
  const end = (Math.floor(useNow() / DAY) + 1) * DAY;
  const usage = useUsage({ start_time: end - span.days * DAY, end_time: end, project_ids: project === undefined ? undefined : [project] }, by, adminKey !== null);
  return (
    <Page title="Usage" description="Tokens and costs by day, in UTC. Trainings are in the costs, and not in the tokens.">
      <AdminGate error={usage.error}>
        <Choice span={span} by={by} project={project} />
        <Loaded what="the usage" query={usage}>
          {(answers) => <UsageOfDays answers={answers} by={by} span={span} />}
        </Loaded>
      </AdminGate>
    </Page>
  );
}

interface DaysQuery {
  start_time: number;
  end_time: number;
  project_ids: string[] | undefined;
}

/** Query the usage of days, grouped. */
function useUsage(days: DaysQuery, by: Grouping, enabled: boolean) {
  const { usage, costs } = GROUPINGS.find(({ id }) => id === by)!;
  const shared = { ...days, bucket_width: "1d" as const, limit: PAGE };
  const options = { enabled, refetchInterval: REFRESH };
  return useQueries({
    queries: [
      { ...getAllAsAdmin("/v1/organization/usage/completions", { query: { ...shared, group_by: [...usage] } }), ...options },
      { ...getAllAsAdmin("/v1/organization/usage/embeddings", { query: { ...shared, group_by: [...usage] } }), ...options },
      { ...getAllAsAdmin("/v1/organization/costs", { query: { ...shared, group_by: [...costs] } }), ...options },
    ],
    combine: ([completions, embeddings, costs]) => ({
      data:
        completions.data && embeddings.data && costs.data
          ? { completions: completions.data, embeddings: embeddings.data, costs: costs.data }
          : undefined,
      error: completions.error ?? embeddings.error ?? costs.error,
      refetch: () => Promise.all([completions.refetch(), embeddings.refetch(), costs.refetch()]),
    }),
  });
}

interface ChoiceProps {
  span: Span;
  by: Grouping;
  project: string | undefined;
}

/** Choose the days, the grouping and the project; all stand in the address. */
function Choice({ span, by, project }: ChoiceProps) {
  const navigate = route.useNavigate();
  const change = (changes: Record<string, string>) => void navigate({ search: (search) => usageSearch({ ...search, ...changes }), replace: true });
  return (
    <div className="filters">
      <Field label="Span">
        <Select value={span.id} options={SPANS.map(({ id, name }) => [id, name] as const)} onChange={(chosen) => change({ span: chosen })} />
      </Field>
      <Field label="Grouped by">
        <Select value={by} options={GROUPINGS.map(({ id, name }) => [id, name] as const)} onChange={(chosen) => change({ by: chosen })} />
      </Field>
      <Field label="Usage of">
        <Select value={project ?? ""} options={[["", "All projects"], ...useProjectNames()]} onChange={(chosen) => change({ project: chosen })} />
      </Field>
    </div>
  );
}

interface UsageOfDaysProps {
  answers: UsageAnswers;
  by: Grouping;
  span: Span;
}

function UsageOfDays({ answers, by, span }: UsageOfDaysProps) {
  const table = useMemo(() => tabulate(answers), [answers]);
  const nameOf = useNames(table.rows, by);
  if (table.rows.length === 0) {
    return (
      <Empty title={`Nothing was used in ${span.name}`} command="nightmill usage report" sdk={SDK}>
        Requests, batches, evaluations and trainings count here within seconds.
      </Empty>
    );
  }
  const { total } = table;
  const csv = () => save(new Blob([asCsv(table, by, nameOf)], { type: "text/csv" }), `usage-by-${by}.csv`);
  return (
    <div className="stack">
      <div className="grid figures">
        <Card>
          <Figure name={`Cost of ${span.name}`} value={<Cost value={total.cost} />} />
        </Card>
        <Card>
          <Figure name="Input tokens" value={formatNumber(total.inputTokens)} remark={cachedShare(total)} />
        </Card>
        <Card>
          <Figure name="Output tokens" value={formatNumber(total.outputTokens)} />
        </Card>
        <Card>
          <Figure name="Requests" value={formatNumber(total.requests)} />
        </Card>
      </div>
      <div className="grid halves">
        <Card>
          <Chart bars utc title="Tokens, a day each" x={table.days} series={seriesOf(table, nameOf, tokensOf)} />
        </Card>
        <Card>
          {total.cost === null ? (
            <Unpriced />
          ) : (
            <Chart bars utc title="Cost, a day each" x={table.days} format={formatDollars} series={seriesOf(table, nameOf, ({ cost }) => cost ?? 0)} />
          )}
        </Card>
      </div>
      <div className="actions end">
        <Button onClick={csv}>Save as CSV</Button>
      </div>
      <Table label="Usage" columns={columnsOf(by, nameOf)} rows={table.rows} rowKey={(row) => `${row.projectId ?? ""} ${row.id ?? ""}`} />
    </div>
  );
}

function columnsOf(by: Grouping, nameOf: (row: UsageRow) => string): readonly Column<UsageRow>[] {
  return [
    { id: "name", header: GROUPINGS.find(({ id }) => id === by)!.name, cell: (row) => <span className="break">{nameOf(row)}</span>, sort: nameOf },
    { id: "requests", header: "Requests", cell: (row) => <Quantity value={row.requests} />, sort: (row) => row.requests, align: "end", wide: true },
    { id: "input", header: "Input tokens", cell: (row) => <Quantity value={row.inputTokens} />, sort: (row) => row.inputTokens, align: "end", wide: true },
    { id: "cached", header: "Cached input", cell: (row) => <Quantity value={row.cachedTokens} />, sort: (row) => row.cachedTokens, align: "end", wide: true },
    { id: "output", header: "Output tokens", cell: (row) => <Quantity value={row.outputTokens} />, sort: (row) => row.outputTokens, align: "end" },
    { id: "cost", header: "Cost", cell: (row) => <Cost value={row.cost} />, sort: (row) => row.cost, align: "end" },
  ];
}

/** Use the names of groups: of projects and keys by their ids, as far as they are known. */
function useNames(rows: readonly UsageRow[], by: Grouping): (row: UsageRow) => string {
  const projects = useProjectNames();
  const ids = by === "key" ? [...new Set(rows.flatMap(({ projectId }) => projectId ?? []))].slice(0, MAX_NAMED_PROJECTS) : [];
  const keys = useQueries({
    queries: ids.map((project_id) => getAllAsAdmin("/v1/organization/projects/{project_id}/api_keys", { path: { project_id }, query: { limit: 100 } })),
    combine: (answers) => answers.flatMap(({ data = [] }) => data),
  });
  const names = new Map(keys.map(({ id, name }) => [id, formatName(name)]));
  return ({ id, projectId }) => {
    const project = projects.get(projectId ?? "") ?? projectId ?? "";
    if (by === "project") return project;
    if (by === "model") return formatName(id ?? "no model");
    return `${project}: ${id === null ? "no key" : (names.get(id) ?? id)}`;
  };
}

function cachedShare({ inputTokens, cachedTokens }: { inputTokens: number; cachedTokens: number }) {
  return inputTokens > 0 && `${formatShare(cachedTokens / inputTokens)} of them cached`;
}

/** Render a cost; one without a price is none, and not 0. */
function Cost({ value }: { value: number | null }) {
  return value === null ? <span className="muted">no price</span> : <span className="number">{formatDollars(value)}</span>;
}

function Unpriced() {
  return (
    <Empty title="No model has a price" command="nightmill prices set MODEL --input 0.10 --output 0.40">
      Work has the price of its minute. A price since an earlier day prices what had no cost.
    </Empty>
  );
}
