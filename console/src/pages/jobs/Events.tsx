import type { Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { Listed } from "@/components/Listed";
import { LinkedJson } from "@/components/ObjectLink";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { cut, SHORT } from "./cut";

type JobEvent = Schema<"JobEvent">;

const REFRESH = 5_000;

const COLUMNS: readonly Column<JobEvent>[] = [
  { id: "seq", header: "No.", cell: (event) => event.seq, align: "end" },
  { id: "type", header: "Event", cell: (event) => <code>{event.type}</code> },
  { id: "at", header: "When", cell: (event) => <Time at={event.created_at} /> },
  { id: "data", header: "Data", cell: (event) => <code className="texts"><LinkedJson text={cut(JSON.stringify(event.data), SHORT).shown} /></code>, wide: true },
];

/** List the events of a job, the oldest first. */
export function Events({ jobId, live }: { jobId: string; live: boolean }) {
  const path = { job_id: jobId };
  const events = usePages("/v1/jobs/{job_id}/events", { path }, { refetchInterval: live && REFRESH, cursorOf: (event) => String(event.seq) });
  return (
    <Listed what="the events" query={events} empty={<p className="muted">The events of this job were removed, because they are old.</p>}>
      <Table label="Events" columns={COLUMNS} rows={events.rows} rowKey={(event) => event.id} />
    </Listed>
  );
}
