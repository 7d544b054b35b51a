import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { useState } from "react";

import type { Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Empty } from "@/components/Empty";
import { Field } from "@/components/Field";
import { TextFilter, TimeFilter } from "@/components/Filters";
import { Listed } from "@/components/Listed";
import { ObjectLink } from "@/components/ObjectLink";
import { Facts, Page } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { words } from "@/components/format";

import type { AuditSearch } from "./address";

type Row = Schema<"AuditLog">;

const route = getRouteApi("/audit");
const SDK = `page = client.get("/audit_logs", cast_to=object)
for row in page["data"]:
    print(row["effective_at"], row["actor"], row["type"], row["target"])`;

/** List what happened in the project: transitions of its jobs, and each call that changed something. */
export default function Audit() {
  const search = route.useSearch();
  const navigate = useNavigate({ from: "/audit" });
  const change = (changes: AuditSearch) => void navigate({ search: { ...search, ...changes } });
  const [shown, setShown] = useState<Row | null>(null);
  const rows = usePages("/v1/audit_logs", { query: { ...search, limit: 50 } }, { refetchInterval: 15_000 });
  const isFiltered = Object.values(search).some((value) => value !== undefined);
  const columns: readonly Column<Row>[] = [
    { id: "at", header: "Time", cell: (row) => <Time at={row.effective_at} /> },
    { id: "type", header: "What", cell: (row) => <What row={row} /> },
    {
      id: "target",
      header: "Object",
      cell: (row) => (
        <button type="button" className="link" onClick={() => change({ target: row.target })} title="Show only what happened to this object">
          <code>{row.target}</code>
        </button>
      ),
    },
    {
      id: "actor",
      header: "By",
      cell: (row) => (
        <button type="button" className="link" onClick={() => change({ actor: row.actor })} title="Show only what this actor did">
          <code>{row.actor}</code>
        </button>
      ),
      wide: true,
    },
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
      <Filters search={search} isFiltered={isFiltered} onChange={change} />
      <Listed
        what="the audit log"
        query={rows}
        empty={
          isFiltered ? (
            <Empty title="No row matches">
              An object, an actor and a type match by their whole names. A key acts as <code>key:</code> with its id.
            </Empty>
          ) : (
            <Empty title="Nothing has happened yet" command="nightmill audit list" sdk={SDK}>
              The first file, batch or key of the project makes the first row.
            </Empty>
          )
        }
      >
        <Table label="Audit log" columns={columns} rows={rows.rows} rowKey={(row) => row.id} />
      </Listed>
      {shown !== null && <Details row={shown} onClose={() => setShown(null)} />}
    </Page>
  );
}

interface FiltersProps {
  search: AuditSearch;
  isFiltered: boolean;
  onChange: (changes: AuditSearch) => void;
}

function Filters({ search, isFiltered, onChange }: FiltersProps) {
  const clear = () => onChange({ target: undefined, actor: undefined, type: undefined, since: undefined, until: undefined });
  return (
    <form className="filters" role="search" aria-label="Audit log" onSubmit={(event) => event.preventDefault()}>
      <Field label="Object">
        <TextFilter maxLength={128} placeholder="batch_…, file-…" value={search.target} onCommit={(target) => onChange({ target })} />
      </Field>
      <Field label="By">
        <TextFilter maxLength={96} placeholder="key:…" value={search.actor} onCommit={(actor) => onChange({ actor })} />
      </Field>
      <Field label="Type">
        <TextFilter maxLength={64} placeholder="key.revoke" value={search.type} onCommit={(type) => onChange({ type })} />
      </Field>
      <Field label="From">
        <TimeFilter value={search.since} onCommit={(since) => onChange({ since })} />
      </Field>
      <Field label="Before">
        <TimeFilter value={search.until} onCommit={(until) => onChange({ until })} />
      </Field>
      {isFiltered && (
        <div className="actions">
          <Button tone="plain" onClick={clear}>
            Show everything
          </Button>
        </div>
      )}
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
            ["Object", <ObjectLink withCopy key="target" id={row.target} />],
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
