import { getRouteApi, Link } from "@tanstack/react-router";

import { usePages } from "@/api/get";
import { Empty } from "@/components/Empty";
import { Field, Select } from "@/components/Field";
import { formatName, words } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Progress } from "@/components/Progress";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { pipelinesSearch } from "./address";
import { isLive, stepCounts, STATUSES, type Pipeline } from "./pipelines";

const route = getRouteApi("/pipelines");
const PAGE = 20;

const COLUMNS: readonly Column<Pipeline>[] = [
  { id: "name", header: "Pipeline", cell: ({ id, name }) => <span className="break">{name === null ? id : formatName(name)}</span>, sort: ({ name }) => name },
  { id: "status", header: "State", cell: ({ status }) => <State state={status} />, sort: ({ status }) => status },
  { id: "steps", header: "Completed steps", cell: (pipeline) => <Progress label={`Steps of ${pipeline.id}`} {...stepCounts(pipeline)} withNumbers /> },
  { id: "id", header: "Id", cell: ({ id }) => <code>{id}</code>, wide: true },
  { id: "created", header: "Created", cell: ({ created_at }) => <Time at={created_at} />, sort: ({ created_at }) => created_at, wide: true },
  { id: "ended", header: "Ended", cell: ({ ended_at }) => (ended_at === null ? "–" : <Time at={ended_at} />), sort: ({ ended_at }) => ended_at, wide: true },
];

/** List the project's pipelines, of one status or of all, the newest first. */
export default function Pipelines() {
  const { status } = route.useSearch();
  const navigate = route.useNavigate();
  const pipelines = usePages("/v1/pipelines", { query: { limit: PAGE, status } }, { pollWhile: isLive });
  return (
    <Page title="Pipelines" description="Jobs that run one after another, each from results of those before it." actions={<NewLink />}>
      <div className="filters">
        <Field label="State">
          <Select
            value={status ?? ""}
            options={[["", "All"], ...STATUSES.map((each) => [each, words(each)] as const)]}
            onChange={(chosen) => void navigate({ search: pipelinesSearch({ status: chosen }), replace: true })}
          />
        </Field>
      </div>
      <Listed what="the pipelines" query={pipelines} empty={status === undefined ? <NoPipelines /> : <Empty title="No such pipelines">Choose another state.</Empty>}>
        <Table
          label="Pipelines"
          columns={COLUMNS}
          rows={pipelines.rows}
          rowKey={({ id }) => id}
          rowLink={({ id }) => ({ to: "/pipelines/$pipelineId", params: { pipelineId: id } })}
        />
      </Listed>
    </Page>
  );
}

function NewLink() {
  return (
    <Link to="/pipelines/new" className="button primary">
      New pipeline
    </Link>
  );
}

function NoPipelines() {
  return (
    <Empty title="No pipelines yet" action={<NewLink />} command="nightmill pipelines run support.yaml">
      A pipeline trains a model, evaluates it and answers questions with it, in one request. A step may use what an earlier one has made:
      {" {{train.fine_tuned_model}}."}
    </Empty>
  );
}
