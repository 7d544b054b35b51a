import { Link } from "@tanstack/react-router";

import { usePages } from "@/api/get";
import { Empty } from "@/components/Empty";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { criteriaOf, type Eval } from "./evals";

const PAGE = 50;
const COLUMNS: readonly Column<Eval>[] = [
  { id: "name", header: "Evaluation", cell: (row) => <span className="break">{row.name || row.id}</span>, sort: (row) => row.name },
  {
    id: "criteria",
    header: "Criteria",
    cell: (row) => <span className="break">{criteriaOf(row).map(({ name }) => name).join(", ")}</span>,
  },
  { id: "data", header: "Data", cell: (row) => (row.data_source_config.type === "custom" ? "items" : "stored answers"), wide: true },
  { id: "id", header: "Id", cell: (row) => <code>{row.id}</code>, wide: true },
  { id: "created", header: "Created", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at },
];

/** List the project's evaluations, the newest first. */
export default function Evals() {
  const evals = usePages("/v1/evals", { query: { limit: PAGE, order: "desc" } });
  return (
    <Page title="Evaluations" description="Ask a model about your own items, grade each answer, and count what passes." actions={<NewLink />}>
      <Listed what="the evaluations" query={evals} empty={<NoEvals />}>
        <Table
          label="Evaluations"
          columns={COLUMNS}
          rows={evals.rows}
          rowKey={(row) => row.id}
          rowLink={(row) => ({ to: "/evals/$evalId", params: { evalId: row.id } })}
        />
      </Listed>
    </Page>
  );
}

function NewLink() {
  return (
    <Link to="/evals/new" className="button primary">
      New evaluation
    </Link>
  );
}

function NoEvals() {
  return (
    <Empty
      title="No evaluations yet"
      action={<NewLink />}
      command={
        "nightmill evals run --data items.jsonl --model smollm2-135m-instruct \\\n" +
        "  --prompt '{{ item.question }}' --grader 'same=ilike:{{ item.answer }}'"
      }
      sdk={
        "evaluation = client.evals.create(\n" +
        '    name="capitals",\n    data_source_config=config,\n    testing_criteria=[criterion],\n)\n' +
        "client.evals.runs.create(evaluation.id, data_source=source)"
      }
    >
      An evaluation has criteria, which grade answers. A run asks one model about a file of items and grades what it answers.
    </Empty>
  );
}
