import { useQuery } from "@tanstack/react-query";

import type { Schema } from "@/api/client";
import { get } from "@/api/get";
import { formatCount } from "@/components/format";
import { Table, type Column } from "@/components/Table";

type LineError = Schema<"BatchError">;

const SHOWN = 100;
const COLUMNS: readonly Column<LineError>[] = [
  { id: "line", header: "Line", cell: (error) => error.line ?? "–", sort: (error) => error.line, align: "end" },
  { id: "field", header: "Field", cell: (error) => <code>{error.param ?? "–"}</code>, wide: true },
  { id: "message", header: "What is wrong", cell: (error) => <span className="break">{error.message}</span> },
];

/** List the lines of a job's files that are wrong; nothing where none is. */
export function LineErrors({ jobId }: { jobId: string }) {
  const path = { job_id: jobId };
  const job = useQuery(get("/v1/jobs/{job_id}", { path }));
  const errors = job.data?.errors?.data ?? [];
  return <ErrorTable errors={errors} truncated={false} />;
}

/** List errors by line. */
export function ErrorTable({ errors, truncated }: { errors: readonly LineError[]; truncated: boolean }) {
  if (errors.length === 0) return null;
  const count = formatCount(errors.length, "error");
  return (
    <div className="stack">
      <p className="muted small">
        {truncated ? `${count} or more` : count}
        {errors.length > SHOWN && `; the first ${SHOWN} are listed`}
      </p>
      <Table
        label="Errors by line"
        columns={COLUMNS}
        rows={errors.slice(0, SHOWN)}
        rowKey={(error) => `${error.line} ${error.param} ${error.code} ${error.message}`}
      />
    </div>
  );
}
