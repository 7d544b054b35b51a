import { useState } from "react";

import type { Schema } from "@/api/client";
import { setAdminKey, useSession } from "@/api/session";
import { AdminGate } from "@/components/AdminGate";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Loaded } from "@/components/Loaded";
import { Page, Section } from "@/components/Page";
import { Quantity } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { words } from "@/components/format";

import { Drain } from "./Drain";
import { PauseForm } from "./PauseForm";
import { Quarantined } from "./Quarantined";
import { pause, resume, useOperation, type Target } from "./steering";

type Worker = Schema<"WorkerObject">;
type Pause = Schema<"PauseObject">;
type Quarantine = Schema<"QuarantineObject">;

/** A queue as its workers serve it. */
interface Queue {
  name: string;
  workers: number;
  slots: number;
  isPaused: boolean;
}

const WORKERS: readonly Column<Worker>[] = [
  {
    id: "id",
    header: "Worker",
    cell: (row) => (
      <>
        <code>{row.id}</code>
        <div className="muted small">
          {row.host}, process {row.pid}
        </div>
      </>
    ),
    sort: (row) => row.id,
  },
  { id: "state", header: "State", cell: (row) => <WorkerState worker={row} />, sort: (row) => row.state },
  { id: "pool", header: "Pool", cell: (row) => row.pool, sort: (row) => row.pool, wide: true },
  { id: "models", header: "Models", cell: (row) => row.models.filter((name) => name !== "*").join(", "), wide: true },
  { id: "running", header: "Running", cell: (row) => `${row.running} of ${row.slots}`, sort: (row) => row.running, align: "end" },
  { id: "other", header: "Other work", cell: (row) => <Quantity value={row.other_work} />, sort: (row) => row.other_work, wide: true, align: "end" },
  { id: "restarts", header: "Engine restarts", cell: (row) => <Quantity value={row.engine_restarts} />, sort: (row) => row.engine_restarts, wide: true, align: "end" },
  {
    id: "actions",
    header: "Actions",
    cell: (row) => {
      const target: Target = { kind: "worker", name: row.id };
      return (
        <span className="actions end">
          <PauseButton target={target} isPaused={row.state === "paused"} />
          <DrainButton target={target} />
        </span>
      );
    },
    align: "end",
  },
];

const QUEUES: readonly Column<Queue>[] = [
  { id: "name", header: "Queue", cell: (row) => <code>{row.name}</code>, sort: (row) => row.name },
  { id: "state", header: "State", cell: (row) => <State state={row.isPaused ? "paused" : "live"} /> },
  { id: "workers", header: "Workers", cell: (row) => <Quantity value={row.workers} />, sort: (row) => row.workers, align: "end" },
  { id: "slots", header: "Slots", cell: (row) => <Quantity value={row.slots} />, sort: (row) => row.slots, wide: true, align: "end" },
  {
    id: "actions",
    header: "Actions",
    cell: (row) => <PauseButton target={{ kind: "queue", name: row.name }} isPaused={row.isPaused} />,
    align: "end",
  },
];

const PAUSES: readonly Column<Pause>[] = [
  { id: "kind", header: "What", cell: (row) => words(row.kind), sort: (row) => row.kind },
  {
    id: "name",
    header: "Name",
    cell: (row) => (
      <>
        <code>{row.name}</code>
        {row.aliases.length > 0 && <span className="muted"> and {row.aliases.join(", ")}</span>}
      </>
    ),
    sort: (row) => row.name,
  },
  { id: "reason", header: "Reason", cell: (row) => row.reason, wide: true },
  {
    id: "actions",
    header: "Actions",
    cell: (row) => <PauseButton target={{ kind: row.kind as Target["kind"], name: row.name }} isPaused />,
    align: "end",
  },
];

/** Show the workers, queues, pauses and quarantines of the deployment, and pause, drain or resume them. */
export default function Workers() {
  const { adminKey } = useSession();
  const [isChoosing, setChoosing] = useState(false);
  const operation = useOperation(adminKey !== null);
  const actions = adminKey !== null && (
    <>
      <Button onClick={() => setChoosing(true)}>Pause…</Button>
      <Button tone="plain" onClick={() => setAdminKey(null)}>
        Forget the admin key
      </Button>
    </>
  );
  return (
    <Page title="Workers" description="The processes that do the work of every project, and what holds them." actions={actions}>
      <AdminGate error={operation.error}>
        <Loaded what="the workers" query={operation}>
          {(operation) => <Shown {...operation} />}
        </Loaded>
        {isChoosing && <PauseForm onClose={() => setChoosing(false)} />}
      </AdminGate>
    </Page>
  );
}

interface ShownProps {
  workers: readonly Worker[];
  pauses: readonly Pause[];
  quarantines: readonly Quarantine[];
}

function Shown({ workers, pauses, quarantines }: ShownProps) {
  return (
    <>
      <Section title="Workers">
        {workers.length === 0 ? (
          <Empty title="No worker runs" command="nightmill up">
            Jobs are accepted and wait. Workers register here within seconds of their start.
          </Empty>
        ) : (
          <Table label="Workers" columns={WORKERS} rows={workers} rowKey={(row) => row.id} />
        )}
      </Section>
      {workers.length > 0 && (
        <Section title="Queues">
          <Table label="Queues" columns={QUEUES} rows={queuesOf(workers, pauses)} rowKey={(row) => row.name} />
        </Section>
      )}
      <Section title="Pauses">
        {pauses.length === 0 ? (
          <p className="muted">Nothing is paused.</p>
        ) : (
          <Table label="Pauses" columns={PAUSES} rows={pauses} rowKey={(row) => `${row.kind} ${row.name}`} />
        )}
      </Section>
      {quarantines.length > 0 && (
        <Section title="Quarantined engines">
          <Quarantined quarantines={quarantines} />
        </Section>
      )}
    </>
  );
}

function WorkerState({ worker }: { worker: Worker }) {
  return (
    <span className="row">
      <State state={worker.state} />
      {worker.loading.map((each) => (
        <span key={each.model} className="muted small">
          {each.model || "an engine"}: {words(each.phase)}, <Time at={each.since} />
        </span>
      ))}
    </span>
  );
}

function queuesOf(workers: readonly Worker[], pauses: readonly Pause[]): Queue[] {
  const names = new Set(workers.flatMap((worker) => worker.queues));
  return [...names].sort().map((name) => {
    const serving = workers.filter((worker) => worker.queues.includes(name));
    const slots = serving.reduce((sum, worker) => sum + worker.slots, 0);
    return { name, workers: serving.length, slots, isPaused: pauses.some((each) => each.kind === "queue" && each.name === name) };
  });
}

/** Render the button that pauses a target, or starts work there again. */
function PauseButton({ target, isPaused }: { target: Target; isPaused: boolean }) {
  const verb = isPaused ? "Resume" : "Pause";
  return (
    <ConfirmButton
      small
      label={verb}
      name={`${verb} the ${target.kind} ${target.name}`}
      title={`${verb} the ${target.kind} ${target.name}?`}
      action={`${verb} it`}
      tone="primary"
      onConfirm={() => (isPaused ? resume(target) : pause(target))}
    >
      <p>
        {isPaused
          ? "Work is started there again. Quarantines of a model end."
          : "Nothing new is started there. What runs goes on, and jobs are still accepted."}
      </p>
    </ConfirmButton>
  );
}

function DrainButton({ target }: { target: Target }) {
  const [isOpen, setOpen] = useState(false);
  return (
    <>
      <Button className="copy" aria-label={`Drain the ${target.kind} ${target.name}`} onClick={() => setOpen(true)}>
        Drain
      </Button>
      {isOpen && <Drain target={target} onClose={() => setOpen(false)} />}
    </>
  );
}
