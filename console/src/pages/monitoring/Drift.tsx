import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { get, POLL, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { describeSource, FEATURES, formatDistance, isLive, type Feature, type Monitor } from "./drift";
import { NewMonitor } from "./NewMonitor";

const PAGE = 20;
const REFRESH = 30_000;
const COLUMNS: readonly Column<Monitor>[] = [
  { id: "name", header: "Monitor", cell: ({ name }) => <span className="break">{name}</span>, sort: ({ name }) => name },
  { id: "source", header: "Source", cell: (monitor) => <span className="break">{describeSource(monitor)}</span>, wide: true },
  { id: "baseline", header: "Baseline", cell: ({ baseline }) => <State state={baseline.status} />, sort: ({ baseline }) => baseline.status, wide: true },
  { id: "check", header: "Last check", cell: (monitor) => <LastCheck monitor={monitor} /> },
];

/** List the project's monitors of drift with their last checks, and create new ones. */
export default function Drift() {
  const [isCreating, setCreating] = useState(false);
  const monitors = usePages("/v1/drift_monitors", { query: { limit: PAGE } }, { pollWhile: ({ baseline }) => isLive(baseline) });
  const create = (
    <Button tone="primary" onClick={() => setCreating(true)}>
      New monitor
    </Button>
  );
  return (
    <Page title="Drift" description="Monitors that compare the texts of now with those of a baseline." actions={create}>
      <Listed what="the monitors" query={monitors} empty={<NoMonitors />}>
        <Table
          label="Monitors"
          columns={COLUMNS}
          rows={monitors.rows}
          rowKey={({ id }) => id}
          rowLink={({ id }) => ({ to: "/drift/$monitorId", params: { monitorId: id } })}
        />
      </Listed>
      {isCreating && <NewMonitor onClose={() => setCreating(false)} />}
    </Page>
  );
}

/** Show the newest check of a monitor: each distance against its limit, or how far the check is. */
function LastCheck({ monitor }: { monitor: Monitor }) {
  const checks = useQuery({
    ...get("/v1/drift_monitors/{monitor_id}/checks", { path: { monitor_id: monitor.id }, query: { limit: 1 } }),
    refetchInterval: ({ state }) => (state.data?.data.some(isLive) ? POLL : REFRESH),
  });
  const check = checks.data?.data[0];
  if (check === undefined) return <span className="muted">{checks.isPending ? "" : "none yet"}</span>;
  return (
    <div className="stack">
      <span className="row">
        <State state={check.is_drift === null ? check.status : check.is_drift ? "drift" : "no_drift"} />
        <span className="muted small">
          <Time at={check.created_at} />
        </span>
      </span>
      {check.features && (
        <div className="small">
          {check.features.map((feature) => (
            <Against key={feature.name} feature={feature} />
          ))}
        </div>
      )}
    </div>
  );
}

function Against({ feature: { name, value, limit, is_drift: isDrift } }: { feature: Feature }) {
  return (
    <div className={isDrift ? "bad" : "muted"}>
      {FEATURES[name].label} {formatDistance(value)}, {isDrift ? "above" : "within"} {formatDistance(limit)}
    </div>
  );
}

function NoMonitors() {
  return (
    <Empty title="No monitors yet" command={`nightmill drift create refunds '{"type": "responses", "model": "support"}' --hours 24`}>
      A monitor tells whether questions, their lengths, their languages or the scores of answers are further from a baseline than chance explains, for example
      from the week in which a model was promoted.
    </Empty>
  );
}
