import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";

import { get } from "@/api/get";
import { Chart, type Series } from "@/components/Chart";
import { Field, Select } from "@/components/Field";
import { Loaded } from "@/components/Loaded";
import { Card, Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";

import { alignCurves, compareParameters, nameOf, type Progress, type TuningJob } from "./tuning";

const route = getRouteApi("/fine-tuning/$jobId");
const LISTED = 100;
const LOSS_DIGITS = 3;

type Row = ReturnType<typeof compareParameters>[number];
type Point = Progress["data"][number];

/** Compare a training with another one: the losses in one chart, the parameters side by side. */
export function Comparison({ job, points }: { job: TuningJob; points: readonly Point[] }) {
  const { baseline } = route.useSearch();
  const navigate = route.useNavigate();
  const jobs = useQuery(get("/v1/fine_tuning/jobs", { query: { limit: LISTED } }));
  const others = (jobs.data?.data ?? []).filter(({ id }) => id !== job.id);
  const options = others.map((other): [string, string] => [other.id, `${nameOf(other)}, ${other.model}, ${other.status}`]);
  return (
    <Section title="Comparison">
      <div className="stack">
        <Field label="Compare with">
          <Select
            value={baseline ?? ""}
            options={[["", others.length > 0 ? "Choose a job …" : "There is no other job"], ...options]}
            onChange={(chosen) => void navigate({ search: { baseline: chosen || undefined }, replace: true })}
          />
        </Field>
        {baseline && <Compared job={job} points={points} baseline={baseline} />}
      </div>
    </Section>
  );
}

function Compared({ job, points, baseline }: { job: TuningJob; points: readonly Point[]; baseline: string }) {
  const path = { fine_tuning_job_id: baseline };
  const other = useQuery(get("/v1/fine_tuning/jobs/{fine_tuning_job_id}", { path }));
  const progress = useQuery(get("/v1/fine_tuning/jobs/{fine_tuning_job_id}/progress", { path }));
  return (
    <Loaded what="the other job" query={other}>
      {(other) => (
        <Loaded what="its progress" query={progress}>
          {({ data }) => (
            <>
              <Losses points={points} others={data} />
              <Table label="Parameters" columns={COLUMNS} rows={compareParameters(job, other)} rowKey={(row) => row.name} />
            </>
          )}
        </Loaded>
      )}
    </Loaded>
  );
}

const COLUMNS: readonly Column<Row>[] = [
  { id: "name", header: "Parameter", cell: (row) => row.name },
  { id: "first", header: "This job", cell: (row) => <Value row={row} text={row.first} /> },
  { id: "second", header: "Other job", cell: (row) => <Value row={row} text={row.second} /> },
];

/** Render a value, and stress one that differs. */
function Value({ row, text }: { row: Row; text: string }) {
  return row.first === row.second ? <span className="muted break">{text}</span> : <strong className="break">{text}</strong>;
}

function Losses({ points, others }: { points: readonly Point[]; others: readonly Point[] }) {
  if (points.length === 0 && others.length === 0) return <p className="muted">Neither has trained a step yet.</p>;
  const training = alignCurves(points, others, (point) => point.train_loss);
  const validation = alignCurves(points, others, (point) => point.valid_loss);
  const curves: Series[] = [
    { label: "this job", colour: "--accent", values: training.first, connected: true },
    { label: "other job", colour: "--warning", values: training.second, connected: true },
    { label: "this job, validation", colour: "--accent", values: validation.first, connected: true, dashed: true },
    { label: "other job, validation", colour: "--warning", values: validation.second, connected: true, dashed: true },
  ];
  const series = curves.filter(({ values }) => values.some((value) => value !== null));
  return (
    <Card>
      <Chart steps title="Losses" x={training.steps} series={series} format={(value) => value.toFixed(LOSS_DIGITS)} />
    </Card>
  );
}
