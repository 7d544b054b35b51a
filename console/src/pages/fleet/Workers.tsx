import { useState } from "react";

import type { Schema } from "@/api/client";
import { setOperatorKey, useSession } from "@/api/session";
import { Button } from "@/components/Button";
import { Confirm } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Loaded } from "@/components/Loaded";
import { Page, Section } from "@/components/Page";
import { Quantity } from "@/components/Quantity";
import { Snippet } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { words } from "@/components/format";

import { Drain } from "./Drain";
import { OperatorGate } from "./OperatorGate";
import { PauseForm } from "./PauseForm";
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

/** What an action of the page is about to do. */
type Action = { verb: "pause" | "resume" | "drain"; target: Target } | { verb: "choose" } | null;

/** Show the workers, queues, pauses and quarantines of the deployment, and pause, drain or resume them. */
export default function Workers() {
  const { operatorKey } = useSession();
  const [action, setAction] = useState<Action>(null);
  const operation = useOperation(operatorKey !== null);
  const actions = operatorKey !== null && (
    <>
      <Button onClick={() => setAction({ verb: "choose" })}>Pause something</Button>
      <Button tone="plain" onClick={() => setOperatorKey(null)}>
        Forget the operator&apos;s key
      </Button>
    </>
  );
  return (
    <Page title="Workers" description="The processes that do the work of every project, and what holds them." actions={actions}>
      <OperatorGate error={operation.error}>
        <Loaded what="the workers" query={operation}>
          {(operation) => <Shown {...operation} onAction={setAction} />}
        </Loaded>
        <Acting action={action} onClose={() => setAction(null)} />
      </OperatorGate>
    </Page>
  );
}

interface ShownProps {
  workers: readonly Worker[];
  pauses: readonly Pause[];
  quarantines: readonly Quarantine[];
  onAction: (action: Action) => void;
}

function Shown({ workers, pauses, quarantines, onAction }: ShownProps) {
  return (
    <>
      <Section title="Workers">
        {workers.length === 0 ? (
          <Empty title="No worker runs" command="nightmill up">
            Jobs are accepted and wait. Workers register here within seconds of their start.
          </Empty>
        ) : (
          <Table label="Workers" columns={workerColumns(onAction)} rows={workers} rowKey={(row) => row.id} />
        )}
      </Section>
      {workers.length > 0 && (
        <Section title="Queues">
          <Table label="Queues" columns={queueColumns(onAction)} rows={queuesOf(workers, pauses)} rowKey={(row) => row.name} />
        </Section>
      )}
      <Section title="Pauses">
        {pauses.length === 0 ? (
          <p className="muted">Nothing is paused.</p>
        ) : (
          <Table label="Pauses" columns={pauseColumns(onAction)} rows={pauses} rowKey={(row) => `${row.kind} ${row.name}`} />
        )}
      </Section>
      {quarantines.length > 0 && (
        <Section title="Quarantined engines">
          <div className="stack">
            {quarantines.map((row) => (
              <Quarantined key={`${row.model} ${row.host_devices}`} quarantine={row} onAction={onAction} />
            ))}
          </div>
        </Section>
      )}
    </>
  );
}

function workerColumns(onAction: (action: Action) => void): readonly Column<Worker>[] {
  return [
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
            {row.state === "paused" ? (
              <Button className="copy" aria-label={`Resume ${row.id}`} onClick={() => onAction({ verb: "resume", target })}>
                Resume
              </Button>
            ) : (
              <Button className="copy" aria-label={`Pause ${row.id}`} onClick={() => onAction({ verb: "pause", target })}>
                Pause
              </Button>
            )}
            <Button className="copy" aria-label={`Drain ${row.id}`} onClick={() => onAction({ verb: "drain", target })}>
              Drain
            </Button>
          </span>
        );
      },
      align: "end",
    },
  ];
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

function queueColumns(onAction: (action: Action) => void): readonly Column<Queue>[] {
  return [
    { id: "name", header: "Queue", cell: (row) => <code>{row.name}</code>, sort: (row) => row.name },
    { id: "state", header: "State", cell: (row) => <State state={row.isPaused ? "paused" : "live"} /> },
    { id: "workers", header: "Workers", cell: (row) => <Quantity value={row.workers} />, sort: (row) => row.workers, align: "end" },
    { id: "slots", header: "Slots", cell: (row) => <Quantity value={row.slots} />, sort: (row) => row.slots, wide: true, align: "end" },
    {
      id: "actions",
      header: "Actions",
      cell: (row) => {
        const verb = row.isPaused ? "resume" : "pause";
        return (
          <Button className="copy" aria-label={`${row.isPaused ? "Resume" : "Pause"} ${row.name}`} onClick={() => onAction({ verb, target: { kind: "queue", name: row.name } })}>
            {row.isPaused ? "Resume" : "Pause"}
          </Button>
        );
      },
      align: "end",
    },
  ];
}

function pauseColumns(onAction: (action: Action) => void): readonly Column<Pause>[] {
  return [
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
      cell: (row) => (
        <Button
          className="copy"
          aria-label={`Resume the ${row.kind} ${row.name}`}
          onClick={() => onAction({ verb: "resume", target: { kind: row.kind as Target["kind"], name: row.name } })}
        >
          Resume
        </Button>
      ),
      align: "end",
    },
  ];
}

function Quarantined({ quarantine, onAction }: { quarantine: Quarantine; onAction: (action: Action) => void }) {
  return (
    <div className="card stack">
      <div className="section-head">
        <h3>
          {quarantine.model} on {quarantine.host_devices}
        </h3>
        <Button onClick={() => onAction({ verb: "resume", target: { kind: "model", name: quarantine.model } })}>Try it again</Button>
      </div>
      <p className="break">{quarantine.error}</p>
      <p className="muted">
        {quarantine.deaths} deaths; in quarantine since <Time at={quarantine.created_at} />, tried again <Time at={quarantine.until} />.
      </p>
      <Snippet label="The end of its log" text={quarantine.lines.join("\n")} />
    </div>
  );
}

/** Render the dialog of the action that was chosen. */
function Acting({ action, onClose }: { action: Action; onClose: () => void }) {
  if (action === null) return null;
  if (action.verb === "choose") return <PauseForm onClose={onClose} />;
  if (action.verb === "drain") return <Drain target={action.target} onClose={onClose} />;
  const { kind, name } = action.target;
  const isPause = action.verb === "pause";
  return (
    <Confirm
      title={`${isPause ? "Pause" : "Resume"} ${kind} ${name}?`}
      action={isPause ? "Pause it" : "Resume it"}
      tone="primary"
      open
      onClose={onClose}
      onConfirm={() => (isPause ? pause(action.target) : resume(action.target))}
    >
      <p>
        {isPause
          ? "Nothing new is started there. What runs goes on, and jobs are still accepted."
          : "Work is started there again. Quarantines of a model end."}
      </p>
    </Confirm>
  );
}
