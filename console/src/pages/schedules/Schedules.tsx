import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { api, take } from "@/api/client";
import { get, refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { Listed } from "@/components/Listed";
import { ObjectLink } from "@/components/ObjectLink";
import { Page } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { ScheduleForm } from "./ScheduleForm";
import { KINDS, type Schedule } from "./schedules";

const SDK = `schedule = client.post("/schedules", cast_to=object, body={
    "cron": "0 3 * * mon-fri",
    "timezone": "Europe/Zurich",
    "batch": {
        "input_file_id": file.id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "6h",
    },
})`;

/** List the schedules of the project; create, pause, resume and delete them. */
export default function Schedules() {
  const [isOpen, setOpen] = useState(false);
  const schedules = usePages("/v1/schedules", {}, { refetchInterval: 30_000 });
  const change = useMutation({
    mutationFn: ({ id, status }: Schedule) => {
      const params = { path: { schedule_id: id } };
      return take(status === "active" ? api.POST("/v1/schedules/{schedule_id}/pause", { params }) : api.POST("/v1/schedules/{schedule_id}/resume", { params }));
    },
    onSuccess: () => refresh("/v1/schedules"),
  });
  const remove = async (schedule: Schedule) => {
    await take(api.DELETE("/v1/schedules/{schedule_id}", { params: { path: { schedule_id: schedule.id } } }));
    await refresh("/v1/schedules");
  };
  const columns: readonly Column<Schedule>[] = [
    {
      id: "cron",
      header: "Times",
      cell: (row) => (
        <>
          <code>{row.cron}</code>
          <div className="muted small">{row.timezone}</div>
        </>
      ),
      sort: (row) => row.cron,
    },
    { id: "status", header: "Status", cell: (row) => <State state={row.status} />, sort: (row) => row.status },
    { id: "next", header: "Next", cell: (row) => (row.status === "active" ? <Time at={row.next_run_at} /> : <span className="muted">never</span>), sort: (row) => row.next_run_at, wide: true },
    { id: "last", header: "Last job", cell: (row) => <Last schedule={row} />, wide: true },
    { id: "kind", header: "Kind", cell: (row) => KINDS[row.kind].label, sort: (row) => KINDS[row.kind].label },
    { id: "request", header: "Request", cell: (row) => (row.batch === null ? <Request schedule={row} /> : <Input batch={row.batch} />), wide: true },
    {
      id: "actions",
      header: "Actions",
      cell: (row) => (
        <span className="actions end">
          <Button className="copy" aria-label={`${row.status === "active" ? "Pause" : "Resume"} ${row.id}`} onClick={() => change.mutate(row)}>
            {row.status === "active" ? "Pause" : "Resume"}
          </Button>
          <ConfirmButton small label="Delete" name={`Delete ${row.id}`} title="Delete this schedule?" action="Delete the schedule" onConfirm={() => remove(row)}>
            <p>It submits no more jobs. Jobs that it has submitted go on.</p>
          </ConfirmButton>
        </span>
      ),
      align: "end",
    },
  ];
  return (
    <Page
      title="Schedules"
      description="Jobs and pipelines that are submitted again at the times of a cron expression."
      actions={
        <Button tone="primary" onClick={() => setOpen(true)}>
          New schedule
        </Button>
      }
    >
      {change.isError && <Failure title="The schedule was not changed" error={change.error} />}
      <Listed
        what="the schedules"
        query={schedules}
        empty={
          <Empty title="No schedules yet" command="nightmill submit questions.jsonl --every '0 3 * * *'" sdk={SDK}>
            A schedule submits a batch, another job or a pipeline again and again: each night, each Monday. The command
            nightmill schedules create takes a file of any job.
          </Empty>
        }
      >
        <Table label="Schedules" columns={columns} rows={schedules.rows} rowKey={(row) => row.id} />
      </Listed>
      {isOpen && <ScheduleForm onClose={() => setOpen(false)} />}
    </Page>
  );
}

function Last({ schedule }: { schedule: Schedule }) {
  if (schedule.last_error !== null) return <span className="bad break">{schedule.last_error}</span>;
  if (schedule.last_job_id === null) return <span className="muted">none yet</span>;
  return (
    <>
      <ObjectLink id={schedule.last_job_id} />
      {schedule.last_run_at !== null && (
        <div className="muted small">
          <Time at={schedule.last_run_at} />
        </div>
      )}
    </>
  );
}

function Input({ batch }: { batch: NonNullable<Schedule["batch"]> }) {
  return (
    <>
      <ObjectLink id={batch.input_file_id} />
      <div className="muted small">
        {batch.endpoint}, within {batch.completion_window}
      </div>
    </>
  );
}

/** Show the request of a schedule once somebody asks for it: lists lack it, because it may be long. */
function Request({ schedule }: { schedule: Schedule }) {
  const [isOpen, setOpen] = useState(false);
  const details = useQuery({ ...get("/v1/schedules/{schedule_id}", { path: { schedule_id: schedule.id } }), enabled: isOpen });
  return (
    <>
      <Button className="copy" aria-label={`${isOpen ? "Hide" : "Show"} the request of ${schedule.id}`} aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
        {isOpen ? "Hide" : "Show"}
      </Button>
      {details.isError && <Failure title="The request is not shown" error={details.error} />}
      {isOpen && details.data && <Snippet label="Request" text={JSON.stringify(details.data.job, null, 2)} />}
    </>
  );
}
