import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";

import { get, POLL } from "@/api/get";
import { formatCount, formatNumber } from "@/components/format";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { hasEnded } from "@/pages/evals/evals";
import { Interval, signed } from "@/pages/evals/Interval";

import { describeRule, scaleOf, type CriterionReport, type Gate } from "./promotions";

const TONES = { passed: "good", failed: "bad", inconclusive: "" } as const satisfies Record<CriterionReport["outcome"], string>;

/** Show a gate of a promotion: its rule, its runs, and by each criterion both sides with the interval of the difference. */
export function GateReport({ gate, isLive }: { gate: Gate; isLive: boolean }) {
  const { eval_id: evalId, candidate_run_id: candidate, incumbent_run_id: incumbent, report } = gate;
  return (
    <Card className="stack">
      <Facts
        facts={[
          ["Outcome", report ? <State key="outcome" state={report.outcome} /> : isLive ? "when its runs have ended" : "not judged"],
          ["Evaluation", <ObjectLink key="eval" id={evalId} />],
          ["Rule", describeRule(gate)],
          ["Criterion", gate.criterion ?? "all of them"],
          ["Run of the candidate", <RunLink key="candidate" evalId={evalId} runId={candidate} />],
          ["Run of the incumbent", incumbent && <RunLink key="incumbent" evalId={evalId} runId={incumbent} />],
          [
            "Comparison",
            report && incumbent && (
              <Link key="comparison" to="/evals/$evalId/runs/$runId" params={{ evalId, runId: candidate }} search={{ tab: "comparison", baseline: incumbent }}>
                Items and regressions
              </Link>
            ),
          ],
          ["Why", report && report.outcome !== "passed" && report.reasons.join("; ")],
        ]}
      />
      {report && report.criteria.length > 0 && (
        <Table label="Criteria of the gate" columns={columnsOf(report.criteria)} rows={report.criteria} rowKey={({ criterion }) => criterion} />
      )}
    </Card>
  );
}

function columnsOf(criteria: readonly CriterionReport[]): Column<CriterionReport>[] {
  const scale = scaleOf(criteria);
  const score = (value: number | null | undefined) => value?.toFixed(3) ?? "–";
  const compared: Column<CriterionReport>[] = [
    { id: "incumbent", header: "Incumbent", cell: ({ incumbent }) => score(incumbent), align: "end" },
    { id: "difference", header: "Difference", cell: ({ difference }) => (typeof difference === "number" ? signed(difference) : "–"), align: "end", wide: true },
    { id: "interval", header: "95 % interval", cell: (row) => <Bounds row={row} scale={scale ?? 1} /> },
  ];
  return [
    { id: "criterion", header: "Criterion", cell: ({ criterion }) => <span className="break">{criterion}</span> },
    { id: "candidate", header: "Candidate", cell: ({ candidate }) => score(candidate), align: "end" },
    ...(scale === null ? [] : compared),
    { id: "items", header: "Items", cell: ({ items }) => formatNumber(items), align: "end", wide: true },
    { id: "outcome", header: "Outcome", cell: (row) => <Outcome row={row} /> },
  ];
}

function Bounds({ row: { low, high, difference, outcome }, scale }: { row: CriterionReport; scale: number }) {
  if (typeof low !== "number" || typeof high !== "number" || typeof difference !== "number") return "–";
  return <Interval row={{ low, high, difference }} tone={TONES[outcome]} scale={scale} />;
}

function Outcome({ row: { outcome, further_items: further } }: { row: CriterionReport }) {
  return (
    <>
      <State state={outcome} />
      {typeof further === "number" && <div className="muted small">about {formatCount(further, "more item")} would decide</div>}
    </>
  );
}

/** Render the link to a run of a gate, with how far it is or what has passed. */
function RunLink({ evalId, runId }: { evalId: string; runId: string }) {
  const run = useQuery({
    ...get("/v1/evals/{eval_id}/runs/{run_id}", { path: { eval_id: evalId, run_id: runId } }),
    refetchInterval: ({ state }) => state.data && !hasEnded(state.data) && POLL,
  });
  const { status, result_counts: counts } = run.data ?? {};
  return (
    <span className="row">
      <Link to="/evals/$evalId/runs/$runId" params={{ evalId, runId }} className="break">
        {counts && status === "completed" ? `${formatNumber(counts.passed)} of ${formatNumber(counts.total)} passed` : runId}
      </Link>
      {status && status !== "completed" && <State state={status} />}
    </span>
  );
}
