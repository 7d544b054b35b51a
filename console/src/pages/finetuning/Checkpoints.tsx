import type { Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { Listed } from "@/components/Listed";
import { ObjectLink } from "@/components/ObjectLink";
import { Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { PlaygroundLink } from "@/pages/fleet/models/ModelLinks";

type Checkpoint = Schema<"Checkpoint">;

const PAGE = 20;
const COLUMNS: readonly Column<Checkpoint>[] = [
  { id: "step", header: "Step", cell: (row) => row.step_number, sort: (row) => row.step_number },
  { id: "train", header: "Training loss", cell: (row) => loss(row.metrics.train_loss), sort: (row) => row.metrics.train_loss, align: "end" },
  { id: "valid", header: "Validation loss", cell: (row) => loss(validLoss(row)), sort: validLoss, align: "end" },
  { id: "created", header: "Stored", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, wide: true },
  { id: "name", header: "Name", cell: (row) => <ObjectLink withCopy id={row.fine_tuned_model_checkpoint} kind="model" />, wide: true },
  { id: "use", header: "Playground", cell: (row) => <PlaygroundLink model={row.fine_tuned_model_checkpoint} label="Open" /> },
];

function validLoss({ metrics }: Checkpoint): number | null {
  return metrics.full_valid_loss ?? metrics.valid_loss;
}

function loss(value: number | null): string {
  return value === null ? "–" : value.toFixed(3);
}

/** List the checkpoints of a job, each of which can be asked as a model of its own. */
export function Checkpoints({ jobId, refetchInterval }: { jobId: string; refetchInterval: number | false }) {
  const path = { fine_tuning_job_id: jobId };
  const query = { limit: PAGE };
  const checkpoints = usePages("/v1/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints", { path, query }, { refetchInterval });
  return (
    <Section title="Checkpoints">
      <Listed what="the checkpoints" query={checkpoints} empty={<p className="muted">None yet.</p>}>
        <Table label="Checkpoints" columns={COLUMNS} rows={checkpoints.rows} rowKey={(row) => row.id} />
      </Listed>
    </Section>
  );
}
