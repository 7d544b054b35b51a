import type { Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { Listed } from "@/components/Listed";
import { Section } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

type TuningEvent = Schema<"FineTuningEvent">;

const PAGE = 50;
const COLUMNS: readonly Column<TuningEvent>[] = [
  { id: "time", header: "Time", cell: (event) => <Time at={event.created_at} /> },
  { id: "level", header: "Level", cell: (event) => (event.level === "info" ? event.level : <State state={event.level === "warn" ? "warning" : "error"} />), wide: true },
  { id: "message", header: "Event", cell: (event) => <span className="break">{event.message}</span> },
];

/** List what happened to a job, the newest first, without its steps. */
export function TuningEvents({ jobId, refetchInterval }: { jobId: string; refetchInterval: number | false }) {
  const path = { fine_tuning_job_id: jobId };
  const query = { limit: PAGE, type: "message" } as const;
  const events = usePages("/v1/fine_tuning/jobs/{fine_tuning_job_id}/events", { path, query }, { refetchInterval });
  return (
    <Section title="Events">
      <Listed what="the events" query={events} empty={<p className="muted">None yet.</p>}>
        <Table label="Events" columns={COLUMNS} rows={events.rows} rowKey={(event) => event.id} />
      </Listed>
    </Section>
  );
}
