import { useQuery } from "@tanstack/react-query";

import { get, POLL } from "@/api/get";
import { formatNumber } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Section } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { FEATURES, formatDistance, isLive, MEASURES, type Check, type Feature } from "./drift";

/** Show one check of a monitor: the distance and the limit of each feature. */
export function CheckDetails({ monitorId, checkId }: { monitorId: string; checkId: string }) {
  const check = useQuery({
    ...get("/v1/drift_monitors/{monitor_id}/checks/{check_id}", { path: { monitor_id: monitorId, check_id: checkId } }),
    refetchInterval: ({ state }) => state.data && isLive(state.data) && POLL,
  });
  return (
    <Section title="Check">
      <Loaded what="the check" query={check}>
        {(check) => (
          <div className="stack">
            <span className="row" aria-live="polite">
              <State state={check.status} />
              {check.is_drift !== null && <State state={check.is_drift ? "drift" : "no_drift"} />}
              <Time at={check.created_at} />
              <ObjectLink id={check.id} />
            </span>
            <Result check={check} />
          </div>
        )}
      </Loaded>
    </Section>
  );
}

function Result({ check: { features, error } }: { check: Check }) {
  return (
    <>
      {error && (
        <p className="bad break">
          <code>{error.code}</code> {error.message}
          {error.line !== null && ` (line ${error.line})`}
        </p>
      )}
      {features && <Table label="Features" columns={COLUMNS} rows={features} rowKey={({ name }) => name} />}
    </>
  );
}

const COLUMNS: readonly Column<Feature>[] = [
  { id: "name", header: "Feature", cell: ({ name }) => FEATURES[name].label, sort: ({ name }) => name },
  { id: "measure", header: "Measure", cell: ({ measure }) => MEASURES[measure], wide: true },
  { id: "value", header: "Distance", cell: ({ value, is_drift }) => <span className={is_drift ? "bad" : undefined}>{formatDistance(value)}</span>, sort: ({ value }) => value, align: "end" },
  { id: "limit", header: "Limit", cell: ({ limit }) => formatDistance(limit), sort: ({ limit }) => limit, align: "end" },
  { id: "texts", header: "Texts, baseline / now", cell: ({ baseline_texts, current_texts }) => `${formatNumber(baseline_texts)} / ${formatNumber(current_texts)}`, align: "end", wide: true },
  { id: "drift", header: "Drift", cell: ({ is_drift }) => <State state={is_drift ? "drift" : "no_drift"} />, sort: ({ is_drift }) => Number(is_drift) },
];
