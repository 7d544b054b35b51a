import { Link } from "@tanstack/react-router";

import { usePages } from "@/api/get";
import { Empty } from "@/components/Empty";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { signed } from "@/pages/evals/Interval";

import { describe, isLive, TARGETS, type Gate, type Promotion } from "./promotions";

const PAGE = 20;
const COLUMNS: readonly Column<Promotion>[] = [
  { id: "target", header: "Promotion", cell: (row) => <span className="break">{describe(row)}</span>, sort: describe },
  { id: "status", header: "State", cell: (row) => <Status promotion={row} />, sort: ({ status }) => status },
  { id: "gates", header: "Gates", cell: (row) => <Gates promotion={row} /> },
  { id: "type", header: "Moves", cell: ({ target }) => TARGETS[target.type], sort: ({ target }) => target.type, wide: true },
  { id: "created", header: "Created", cell: ({ created_at }) => <Time at={created_at} />, sort: ({ created_at }) => created_at, wide: true },
];

/** List the project's promotions with the results of their gates, the newest first. */
export default function Promotions() {
  const promotions = usePages("/v1/promotions", { query: { limit: PAGE } }, { pollWhile: isLive });
  return (
    <Page title="Promotions" description="Moves of aliases, models, prompts and indexes that gates have to permit." actions={<NewLink />}>
      <Listed what="the promotions" query={promotions} empty={<NoPromotions />}>
        <Table
          label="Promotions"
          columns={COLUMNS}
          rows={promotions.rows}
          rowKey={({ id }) => id}
          rowLink={({ id }) => ({ to: "/promotions/$promotionId", params: { promotionId: id } })}
        />
      </Listed>
    </Page>
  );
}

function Status({ promotion: { status, force } }: { promotion: Promotion }) {
  return (
    <>
      <State state={status} />
      {force && <div className="muted small">forced</div>}
    </>
  );
}

/** Show the result of each gate by its first criterion: both sides, the interval of the difference, and the outcome. */
function Gates({ promotion }: { promotion: Promotion }) {
  if (promotion.gates.length === 0) return <span className="muted break">none: {promotion.reason}</span>;
  return promotion.gates.map((gate, index) => <Result key={index} gate={gate} />);
}

function Result({ gate: { report } }: { gate: Gate }) {
  const first = report?.criteria[0];
  if (!report) return <div className="muted">not judged</div>;
  return (
    <div className="row">
      <State state={report.outcome} />
      {first && (
        <span className="number">
          {first.candidate?.toFixed(3) ?? "–"}
          {typeof first.incumbent === "number" && ` against ${first.incumbent.toFixed(3)}`}
          {typeof first.low === "number" && typeof first.high === "number" && (
            <span className="muted small">
              {" "}
              {signed(first.low)} to {signed(first.high)}
            </span>
          )}
        </span>
      )}
    </div>
  );
}

function NewLink() {
  return (
    <Link to="/promotions/new" className="button primary">
      New promotion
    </Link>
  );
}

function NoPromotions() {
  return (
    <Empty
      title="No promotions yet"
      action={<NewLink />}
      command="nightmill promote alias support-bot NEW_MODEL --eval eval_68f0c2 --data items.jsonl --prompt '{{ item.question }}' --wait"
    >
      A promotion runs an evaluation for a candidate and for what is in production, and moves an alias, a model, a prompt or an index only where the candidate
      is good enough.
    </Empty>
  );
}
