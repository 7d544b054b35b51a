import { useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";

import { api, take } from "@/api/client";
import { get } from "@/api/get";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Listed } from "@/components/Listed";
import { Loaded } from "@/components/Loaded";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Bytes, Quantity } from "@/components/Quantity";
import { Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { describeSplit, type Dataset, type Version } from "./datasets";
import { refreshDatasets, useVersions } from "./queries";
import { VersionDetails } from "./VersionDetails";

const route = getRouteApi("/datasets/$datasetId");

/** Show a dataset: how it is split, its versions, and one of them. */
export default function DatasetPage() {
  const { datasetId } = route.useParams();
  const dataset = useQuery(get("/v1/datasets/{dataset}", { path: { dataset: datasetId } }));
  return (
    <Loaded what="the dataset" query={dataset} page="Dataset">
      {(dataset) => <Shown dataset={dataset} />}
    </Loaded>
  );
}

function Shown({ dataset }: { dataset: Dataset }) {
  const { version } = route.useSearch();
  const versions = useVersions(dataset.id);
  const complete = versions.rows.find(({ status }) => status === "completed")?.version ?? dataset.latest_version;
  const shown = version ?? versions.rows[0]?.version;
  return (
    <Page title={dataset.name} description={<Id id={dataset.id} />} actions={<Actions dataset={dataset} />}>
      <Card className="stack">
        {dataset.description && <p className="break">{dataset.description}</p>}
        <Facts
          facts={[
            ["Split", describeSplit(dataset)],
            ["Seed", dataset.seed],
            ["Newest complete version", complete ?? "none"],
            ["Created", <Time key="created" at={dataset.created_at} />],
            ["Created by", dataset.created_by],
            ...Object.entries(dataset.metadata),
          ]}
        />
      </Card>
      <Section title="Versions">
        <Listed what="the versions" query={versions} empty={<NoVersions dataset={dataset} />}>
          <Table
            label="Versions"
            columns={COLUMNS}
            rows={versions.rows}
            rowKey={({ id }) => id}
            rowLink={({ version }) => ({ to: "/datasets/$datasetId", params: { datasetId: dataset.id }, search: { version } })}
          />
        </Listed>
      </Section>
      {shown !== undefined && <VersionDetails key={shown} dataset={dataset} number={shown} />}
    </Page>
  );
}

const COLUMNS: readonly Column<Version>[] = [
  { id: "version", header: "Version", cell: ({ version }) => `Version ${version}`, sort: ({ version }) => version },
  { id: "state", header: "State", cell: ({ status }) => <State state={status} />, sort: ({ status }) => status },
  { id: "rows", header: "Rows", cell: ({ rows }) => (rows === null ? "–" : <Quantity value={rows} />), sort: ({ rows }) => rows, align: "end" },
  { id: "splits", header: "Splits", cell: ({ splits }) => splits.map(({ name }) => name).join(", ") || "–", wide: true },
  { id: "size", header: "Size", cell: ({ bytes }) => (bytes === null ? "–" : <Bytes value={bytes} />), sort: ({ bytes }) => bytes, align: "end", wide: true },
  { id: "hash", header: "SHA-256", cell: ({ sha256 }) => (sha256 === null ? "–" : <code>{sha256.slice(0, 12)}</code>), wide: true },
  { id: "created", header: "Created", cell: ({ created_at }) => <Time at={created_at} />, sort: ({ created_at }) => created_at },
];

function NewLink({ dataset }: { dataset: Dataset }) {
  return (
    <Link to="/datasets/$datasetId/versions/new" params={{ datasetId: dataset.id }} className="button primary">
      New version
    </Link>
  );
}

function Actions({ dataset }: { dataset: Dataset }) {
  const navigate = route.useNavigate();
  async function remove() {
    await take(api.DELETE("/v1/datasets/{dataset}", { params: { path: { dataset: dataset.id } } }));
    await navigate({ to: "/datasets" });
    void refreshDatasets();
  }
  return (
    <>
      <NewLink dataset={dataset} />
      <ConfirmButton label="Delete" title="Delete this dataset?" action="Delete the dataset" onConfirm={remove}>
        <p>All its versions are deleted with their files. The files that they were made of stay.</p>
      </ConfirmButton>
    </>
  );
}

function NoVersions({ dataset }: { dataset: Dataset }) {
  return (
    <Empty title="No versions yet" action={<NewLink dataset={dataset} />} command={`nightmill datasets add ${dataset.name} tickets.jsonl`}>
      A version has the rows of files, of stored answers, of evaluation runs or of batches.
    </Empty>
  );
}
