import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";

import { api, take } from "@/api/client";
import { get, POLL, refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Chart } from "@/components/Chart";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { formatCount } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Duration } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { CheckDetails } from "./CheckDetails";
import { describeSource, FEATURES, isLive, trendOf, type Check, type Monitor } from "./drift";

const route = getRouteApi("/drift/$monitorId");
const PATH = "/v1/drift_monitors/{monitor_id}";
const LISTED = 100;

/** Show a drift monitor: its baseline, one of its checks, their trend, and all of them. */
export default function MonitorPage() {
  const { monitorId } = route.useParams();
  const monitor = useQuery({
    ...get(PATH, { path: { monitor_id: monitorId } }),
    refetchInterval: ({ state }) => state.data && isLive(state.data.baseline) && POLL,
  });
  return (
    <Loaded what="the monitor" query={monitor} page="Monitor">
      {(monitor) => (
        <Page title={monitor.name} description={<Id id={monitor.id} />} actions={<Actions monitor={monitor} />}>
          <Summary monitor={monitor} />
          <Checks monitor={monitor} />
        </Page>
      )}
    </Loaded>
  );
}

function Summary({ monitor }: { monitor: Monitor }) {
  const { source, baseline, window_seconds: window } = monitor;
  return (
    <Card className="stack">
      {baseline.error && (
        <p className="bad break">
          <code>{baseline.error.code}</code> {baseline.error.message}
        </p>
      )}
      <Facts
        facts={[
          ["Source", source.type === "file" ? <ObjectLink key="source" id={String(source.file_id)} /> : describeSource(monitor)],
          ["Answers of the last", source.type !== "file" && <Duration key="window" seconds={window} />],
          ["Texts", `at most ${formatCount(monitor.sample, "text")}`],
          ["Embeddings by", monitor.embedding_model],
          ["Baseline", <Baseline key="baseline" baseline={baseline} />],
          ["Created", <Time key="created" at={monitor.created_at} />],
          ...Object.entries(monitor.metadata ?? {}),
        ]}
      />
    </Card>
  );
}

function Baseline({ baseline: { id, status } }: Pick<Monitor, "baseline">) {
  return (
    <span className="row">
      <State state={status} />
      <ObjectLink id={id} />
    </span>
  );
}

function Checks({ monitor: { id, name } }: { monitor: Monitor }) {
  const { check } = route.useSearch();
  const checks = usePages(`${PATH}/checks`, { path: { monitor_id: id }, query: { limit: LISTED } }, { pollWhile: isLive });
  const shown = check ?? checks.rows[0]?.id;
  const trend = trendOf(checks.rows);
  return (
    <>
      {shown !== undefined && <CheckDetails key={shown} monitorId={id} checkId={shown} />}
      {trend && (
        <Section title="Trend">
          <Card>
            <Chart title="Distances as multiples of their limits" x={trend.times} series={trend.series} format={(value) => `${value.toFixed(2)} ×`} />
          </Card>
        </Section>
      )}
      <Section title="Checks">
        <Listed what="the checks" query={checks} empty={<NoChecks monitorId={id} />}>
          <Table
            label={`Checks of ${name}`}
            columns={COLUMNS}
            rows={checks.rows}
            rowKey={(row) => row.id}
            rowLink={(row) => ({ to: "/drift/$monitorId", params: { monitorId: id }, search: { check: row.id } })}
          />
        </Listed>
      </Section>
    </>
  );
}

const COLUMNS: readonly Column<Check>[] = [
  { id: "time", header: "Time", cell: ({ created_at }) => <Time at={created_at} />, sort: ({ created_at }) => created_at },
  { id: "status", header: "State", cell: ({ status }) => <State state={status} />, sort: ({ status }) => status },
  { id: "drift", header: "Drift", cell: (check) => <span className={check.is_drift ? "bad" : undefined}>{describeDrift(check)}</span> },
  { id: "id", header: "Id", cell: ({ id }) => <code>{id}</code>, wide: true },
];

/** Return the features of a check that are above their limits. */
function describeDrift({ features }: Check): string {
  if (features === null) return "–";
  return features.filter(({ is_drift }) => is_drift).map(({ name }) => FEATURES[name].label).join(", ") || "none";
}

function Actions({ monitor: { id, name, baseline } }: { monitor: Monitor }) {
  const navigate = route.useNavigate();
  const params = { path: { monitor_id: id } };
  const check = useMutation({
    mutationFn: () => take(api.POST(`${PATH}/checks`, { params, body: {} })),
    onSuccess: async () => {
      await refresh(`${PATH}/checks`);
      await navigate({ search: {} });
    },
  });
  async function renew() {
    await take(api.POST(`${PATH}/baseline`, { params, body: {} }));
    await refresh(PATH);
  }
  async function remove() {
    await take(api.DELETE(PATH, { params }));
    await navigate({ to: "/drift" });
    void refresh("/v1/drift_monitors");
  }
  return (
    <>
      {check.isError && <Failure title="The check was not made" error={check.error} />}
      <Button tone="primary" busy={check.isPending} disabled={baseline.status === "failed" || baseline.status === "cancelled"} onClick={() => check.mutate()}>
        Check now
      </Button>
      <ConfirmButton label="New baseline" title="Make another baseline?" action="Make the baseline" tone="primary" onConfirm={renew}>
        <p>Later checks compare with the texts that the source has now: after another model was promoted, for example.</p>
      </ConfirmButton>
      <ConfirmButton label="Delete" title="Delete this monitor?" action="Delete the monitor" onConfirm={remove}>
        <p className="break">{name} is deleted with its baseline and its checks. Checks that run are cancelled.</p>
      </ConfirmButton>
    </>
  );
}

function NoChecks({ monitorId }: { monitorId: string }) {
  return (
    <Empty title="No checks yet" command={`nightmill drift check ${monitorId} --fail-if-drift`}>
      A check waits until the baseline is made.
    </Empty>
  );
}
