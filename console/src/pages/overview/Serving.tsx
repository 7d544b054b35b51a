import { useQuery } from "@tanstack/react-query";

import type { Schema } from "@/api/client";
import { getAsAdmin } from "@/api/get";
import { formatCount } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Section } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { useModels, type Model } from "@/pages/fleet/models/served";

type Worker = Schema<"WorkerObject">;

/** Milliseconds between two readings; a worker's heartbeat is no event. */
const REFRESH = 10_000;

const MODELS: readonly Column<Model>[] = [
  { id: "id", header: "Model", cell: (model) => <ObjectLink id={model.id} kind="model" />, sort: (model) => model.id },
  {
    id: "state",
    header: "State",
    cell: (model) => <State state={model.serving?.state ?? "unknown"} />,
    sort: (model) => model.serving?.state ?? null,
  },
  {
    id: "queue",
    header: "Queue",
    cell: (model) => <code>{model.serving?.queue ?? "–"}</code>,
    sort: (model) => model.serving?.queue ?? null,
    wide: true,
  },
  { id: "reason", header: "Served by", cell: (model) => <ServedBy model={model} /> },
];
const WORKERS: readonly Column<Worker>[] = [
  { id: "id", header: "Worker", cell: (worker) => <code>{worker.id}</code>, sort: (worker) => worker.id },
  { id: "pool", header: "Pool", cell: (worker) => worker.pool, sort: (worker) => worker.pool },
  { id: "host", header: "Host", cell: (worker) => worker.host, sort: (worker) => worker.host, wide: true },
  { id: "state", header: "State", cell: (worker) => <State state={worker.state} />, sort: (worker) => worker.state },
  { id: "queues", header: "Queues", cell: (worker) => <code>{worker.queues.join(" ")}</code>, wide: true },
  { id: "running", header: "Running", cell: (worker) => `${worker.running} of ${worker.slots}`, sort: (worker) => worker.running, align: "end" },
];

/** Show where each model is served, and why not. */
export function Models() {
  const models = useModels();
  return (
    <Section title="Models">
      <Loaded what="the models" query={models}>
        {({ data }) => <Table label="Models" columns={MODELS} rows={data} rowKey={(model) => model.id} />}
      </Loaded>
    </Section>
  );
}

function ServedBy({ model: { serving } }: { model: Model }) {
  if (!serving) return <>–</>;
  return (
    <>
      {serving.reason ?? formatCount(serving.workers, "worker")}
      {serving.loading_since && (
        <>
          , since <Time at={serving.loading_since} />
        </>
      )}
    </>
  );
}

/** Show the live workers of the deployment, with the admin key. */
export function Workers() {
  const workers = useQuery({
    ...getAsAdmin("/v1/workers", {}),
    refetchInterval: REFRESH,
  });
  return (
    <Section title="Workers">
      <Loaded what="the workers" query={workers}>
        {({ data }) => <Table label="Workers" columns={WORKERS} rows={data} rowKey={(worker) => worker.id} />}
      </Loaded>
    </Section>
  );
}
