import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api } from "@/api/client";
import { get, refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Confirm } from "@/components/Confirm";
import { Dialog } from "@/components/Dialog";
import { words } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Loaded } from "@/components/Loaded";
import { Page, Section } from "@/components/Page";
import { Id, Snippet } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { Counts } from "./Counts";
import { criteriaOf, hasEnded, passShare, type Eval, type Run } from "./evals";
import { NewRun } from "./NewRun";

const route = getRouteApi("/evals/$evalId");
const PAGE = 50;

const RUNS: readonly Column<Run>[] = [
  { id: "name", header: "Run", cell: (run) => <span className="break">{run.name || run.id}</span>, sort: (run) => run.name },
  { id: "status", header: "State", cell: (run) => <State state={run.status} />, sort: (run) => run.status },
  { id: "model", header: "Model", cell: (run) => <span className="break">{run.model ?? "–"}</span>, sort: (run) => run.model },
  { id: "counts", header: "Items", cell: (run) => <Counts counts={run.result_counts} />, sort: (run) => passShare(run.result_counts), wide: true },
  { id: "created", header: "Created", cell: (run) => <Time at={run.created_at} />, sort: (run) => run.created_at, wide: true },
];

/** Show an evaluation: its criteria and its runs. */
export default function EvalPage() {
  const { evalId } = route.useParams();
  const path = { eval_id: evalId };
  const row = useQuery(get("/v1/evals/{eval_id}", { path }));
  return (
    <Loaded what="the evaluation" query={row} page="Evaluation">
      {(row) => <Shown row={row} />}
    </Loaded>
  );
}

function Shown({ row }: { row: Eval }) {
  const [open, setOpen] = useState<"run" | "delete" | null>(null);
  const navigate = route.useNavigate();
  return (
    <Page
      title={row.name || "Evaluation"}
      description={<Id id={row.id} />}
      actions={
        <>
          <Button tone="primary" onClick={() => setOpen("run")}>
            New run
          </Button>
          <Button onClick={() => setOpen("delete")}>Delete</Button>
        </>
      }
    >
      <Runs evalId={row.id} />
      <Criteria row={row} />
      <Dialog title="New run" className="wide" open={open === "run"} onClose={() => setOpen(null)}>
        <NewRun evalId={row.id} />
      </Dialog>
      <Confirm
        title="Delete this evaluation?"
        action="Delete the evaluation"
        open={open === "delete"}
        onClose={() => setOpen(null)}
        onConfirm={async () => {
          await api.DELETE("/v1/evals/{eval_id}", { params: { path: { eval_id: row.id } } });
          await refresh("/v1/evals");
          await navigate({ to: "/evals" });
        }}
      >
        <p>Its runs, their items and their grades are deleted for good.</p>
      </Confirm>
    </Page>
  );
}

function Runs({ evalId }: { evalId: string }) {
  const path = { eval_id: evalId };
  const query = { limit: PAGE, order: "desc" } as const;
  const runs = usePages("/v1/evals/{eval_id}/runs", { path, query }, { pollWhile: (run) => !hasEnded(run) });
  return (
    <Section title="Runs">
      <Listed what="the runs" query={runs} empty={<p className="muted">No run yet: New run asks a model about a file of items.</p>}>
        <Table
          label="Runs"
          columns={RUNS}
          rows={runs.rows}
          rowKey={(run) => run.id}
          rowLink={(run) => ({ to: "/evals/$evalId/runs/$runId", params: { evalId, runId: run.id } })}
        />
      </Listed>
    </Section>
  );
}

function Criteria({ row }: { row: Eval }) {
  return (
    <Section title="Criteria">
      <div className="stack">
        {criteriaOf(row).map(({ name, type }, index) => (
          <details key={name}>
            <summary className="break">
              {name} ({words(type)})
            </summary>
            <Snippet label="Definition" text={JSON.stringify(row.testing_criteria[index], null, 2)} />
          </details>
        ))}
        {row.data_source_config.type === "custom" && (
          <details>
            <summary>Schema of the items</summary>
            <Snippet label="JSON schema" text={JSON.stringify(row.data_source_config.schema, null, 2)} />
          </details>
        )}
      </div>
    </Section>
  );
}
