import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";

import type { Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Empty } from "@/components/Empty";
import { Field, Input } from "@/components/Field";
import { Listed } from "@/components/Listed";
import { Facts, Page } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { words } from "@/components/format";

type Row = Schema<"AuditLog">;

const route = getRouteApi("/audit");
const SDK = `page = client.get("/audit_logs", cast_to=object)
for row in page["data"]:
    print(row["effective_at"], row["actor"], row["type"], row["target"])`;

/** List what happened in the project: transitions of its jobs, and each call that changed something. */
export default function Audit() {
  const { target } = route.useSearch();
  const navigate = useNavigate({ from: "/audit" });
  const [shown, setShown] = useState<Row | null>(null);
  const rows = usePages("/v1/audit_logs", { query: { target, limit: 50 } }, { refetchInterval: 15_000 });
  const show = (next: string | undefined) => void navigate({ search: { target: next } });
  const columns: readonly Column<Row>[] = [
    { id: "at", header: "Time", cell: (row) => <Time at={row.effective_at} /> },
    { id: "type", header: "What", cell: (row) => <What row={row} /> },
    {
      id: "target",
      header: "Object",
      cell: (row) => (
        <button type="button" className="link" onClick={() => show(row.target)} title="Show only what happened to this object">
          <code>{row.target}</code>
        </button>
      ),
    },
    { id: "actor", header: "By", cell: (row) => <code>{row.actor}</code>, wide: true },
    {
      id: "details",
      header: "Details",
      cell: (row) => (
        <Button className="copy" aria-label={`Details of ${row.id}`} onClick={() => setShown(row)}>
          Details
        </Button>
      ),
      align: "end",
    },
  ];
  return (
    <Page title="Audit" description="What happened in this project, the newest first: every change of a job’s state, and every call that changed something.">
      <Filter key={target ?? ""} target={target} onChange={show} />
      <Listed
        what="the audit log"
        query={rows}
        empty={
          <Empty title={target === undefined ? "Nothing has happened yet" : "Nothing happened to this object"} command="nightmill audit list" sdk={SDK}>
            {target === undefined
              ? "The first file, batch or key of the project makes the first row."
              : "Check the id: a job, a file, a key, an endpoint or another object of this project."}
          </Empty>
        }
      >
        <Table label="Audit log" columns={columns} rows={rows.rows} rowKey={(row) => row.id} />
      </Listed>
      {shown !== null && <Details row={shown} onClose={() => setShown(null)} />}
    </Page>
  );
}

function Filter({ target, onChange }: { target: string | undefined; onChange: (target: string | undefined) => void }) {
  const [text, setText] = useState(target ?? "");
  function submit(event: FormEvent) {
    event.preventDefault();
    onChange(text.trim() || undefined);
  }
  return (
    <form className="filters" onSubmit={submit}>
      <Field label="Object">
        <Input type="search" maxLength={128} placeholder="batch_…, file-…, key id" value={text} onChange={(event) => setText(event.target.value)} />
      </Field>
      <div className="actions">
        <Button type="submit">Show</Button>
        {target !== undefined && (
          <Button tone="plain" onClick={() => onChange(undefined)}>
            Show everything
          </Button>
        )}
      </div>
    </form>
  );
}

function What({ row }: { row: Row }) {
  if (row.destination === null) return <code>{row.type}</code>;
  return (
    <span>
      <code>{row.type}</code>{" "}
      <span className="muted">
        {row.source === null ? "" : `${words(row.source)} → `}
        {words(row.destination)}
      </span>
    </span>
  );
}

function Details({ row, onClose }: { row: Row; onClose: () => void }) {
  return (
    <Dialog title="Row of the audit log" open onClose={onClose}>
      <div className="stack">
        <Facts
          facts={[
            ["Time", <Time key="at" at={row.effective_at} exact />],
            ["What", <What key="what" row={row} />],
            ["Object", <code key="target">{row.target}</code>],
            ["By", <code key="actor">{row.actor}</code>],
            ["Request", row.request_id && <code key="request">{row.request_id}</code>],
            ["Sealed", row.sealed ? "yes: part of the hash chain" : "not yet"],
          ]}
        />
        {row.details !== null && <Snippet label="Details" text={JSON.stringify(row.details, null, 2)} />}
      </div>
    </Dialog>
  );
}
