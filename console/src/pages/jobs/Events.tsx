import { api, type Schema } from "@/api/client";
import { usePages } from "@/api/pages";
import { Failure } from "@/components/Failure";
import { Loading } from "@/components/Loading";
import { LoadMore } from "@/components/LoadMore";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { cut, SHORT } from "./cut";

type JobEvent = Schema<"JobEvent">;

const REFRESH = 5_000;

const COLUMNS: readonly Column<JobEvent>[] = [
  { id: "seq", header: "No.", cell: (event) => event.seq, align: "end" },
  { id: "type", header: "Event", cell: (event) => <code>{event.type}</code> },
  { id: "at", header: "When", cell: (event) => <Time at={event.created_at} /> },
  { id: "data", header: "Data", cell: (event) => <code className="texts">{cut(JSON.stringify(event.data), SHORT).shown}</code>, wide: true },
];

/** List the events of a job, the oldest first. */
export function Events({ jobId, live }: { jobId: string; live: boolean }) {
  const path = { job_id: jobId };
  const events = usePages(
    ["/v1/jobs/{job_id}/events", path, live],
    async (after, signal) => {
      const query = { after: Number(after ?? 0) };
      const answer = await api.GET("/v1/jobs/{job_id}/events", { params: { path, query }, signal });
      const page = answer.data as Schema<"EventPage">;
      return { ...page, last_id: String(page.data.at(-1)?.seq ?? 0) };
    },
    { refetchInterval: live && REFRESH },
  );
  return (
    <>
      {events.isPending && <Loading what="the events" />}
      {events.isError && <Failure title="The events could not be listed" error={events.error} onRetry={() => void events.refetch()} />}
      {events.isSuccess &&
        (events.rows.length === 0 ? (
          <p className="muted">The events of this job were removed, because they are old.</p>
        ) : (
          <Table label="Events" columns={COLUMNS} rows={events.rows} rowKey={(event) => event.id} />
        ))}
      <LoadMore query={events} />
    </>
  );
}
