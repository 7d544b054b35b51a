import { useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";

import { api, take } from "@/api/client";
import { get, POLL } from "@/api/get";
import { ConfirmButton } from "@/components/Confirm";
import { formatShare } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Section } from "@/components/Page";
import { Bytes, Quantity } from "@/components/Quantity";
import { Copy, Id } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { ErrorTable } from "@/pages/finetuning/LineErrors";

import { describeConditions, isMade, sourceLabel, sourcesOf, type Dataset, type Source, type Split, type Version } from "./datasets";
import { refreshDatasets } from "./queries";

const route = getRouteApi("/datasets/$datasetId");

/** Show a version of a dataset: its rows, splits, digest and sources. */
export function VersionDetails({ dataset, number }: { dataset: Dataset; number: number }) {
  const path = { dataset: dataset.id, version: String(number) };
  const version = useQuery({
    ...get("/v1/datasets/{dataset}/versions/{version}", { path }),
    refetchInterval: ({ state }) => state.data && !isMade(state.data) && POLL,
  });
  return (
    <Section title={`Version ${number}`} actions={version.data && <Deletion version={version.data} />}>
      <Loaded what="the version" query={version}>
        {(version) => <Details version={version} />}
      </Loaded>
    </Section>
  );
}

function Details({ version }: { version: Version }) {
  const { rows, duplicates, bytes, sha256, splits } = version;
  return (
    <div className="stack">
      <Card>
        <Facts
          facts={[
            ["State", <State key="state" state={version.status} />],
            ["Rows", rows !== null && <Quantity key="rows" value={rows} />],
            ["Equal rows left out", version.deduplicate && duplicates !== null && <Quantity key="duplicates" value={duplicates} />],
            ["Size", bytes !== null && <Bytes key="bytes" value={bytes} />],
            ["SHA-256", sha256 !== null && <Id key="hash" id={sha256} />],
            ["Git commit", version.git_commit !== null && <code key="git">{version.git_commit}</code>],
            ["DVC hash", version.dvc_hash !== null && <code key="dvc">{version.dvc_hash}</code>],
            ["Job", <ObjectLink key="job" id={version.id} />],
            ["Created", <Time key="created" at={version.created_at} />],
            ["Created by", version.created_by],
          ]}
        />
      </Card>
      <ErrorTable errors={version.errors?.data ?? []} truncated={false} />
      {splits.length > 0 && <Splits splits={splits} rows={rows ?? 0} />}
      <h3>Sources</h3>
      <Table label="Sources" columns={SOURCES} rows={sourcesOf(version).map((source, index) => ({ source, index }))} rowKey={({ index }) => String(index)} />
    </div>
  );
}

function Splits({ splits, rows }: { splits: readonly Split[]; rows: number }) {
  const columns: readonly Column<Split>[] = [
    { id: "name", header: "Split", cell: ({ name }) => <strong>{name}</strong>, sort: ({ name }) => name },
    { id: "rows", header: "Rows", cell: (split) => <Quantity value={split.rows} />, sort: (split) => split.rows, align: "end" },
    { id: "share", header: "Share", cell: (split) => (rows > 0 ? formatShare(split.rows / rows) : "–"), align: "end", wide: true },
    { id: "bytes", header: "Size", cell: ({ bytes }) => <Bytes value={bytes} />, sort: ({ bytes }) => bytes, align: "end", wide: true },
    {
      id: "reference",
      header: "Reference",
      cell: ({ reference }) => (
        <span className="id">
          <code>{reference}</code>
          <Copy text={reference} />
        </span>
      ),
    },
    { id: "file", header: "File", cell: ({ file_id }) => <ObjectLink id={file_id} />, wide: true },
    { id: "hash", header: "SHA-256", cell: ({ sha256 }) => <code title={sha256}>{sha256.slice(0, 12)}</code>, wide: true },
    {
      id: "use",
      header: "Use",
      cell: ({ name, reference }) => (
        <Link to="/fine-tuning/new" search={{ file: reference }}>
          Train<span className="hidden"> on {name}</span>
        </Link>
      ),
    },
  ];
  return (
    <>
      <h3>Splits</h3>
      <Table label="Splits" columns={columns} rows={splits} rowKey={({ file_id }) => file_id} />
    </>
  );
}

const SOURCES: readonly Column<{ source: Source; index: number }>[] = [
  { id: "kind", header: "Source", cell: ({ source }) => sourceLabel(source) },
  {
    id: "object",
    header: "Object",
    cell: ({ source }) => (source.reference ? <code className="break">{source.reference}</code> : <Named id={source.id ?? source.run_id ?? source.batch_id} />),
  },
  { id: "conditions", header: "Selected by", cell: ({ source }) => <span className="break">{describeConditions(source) || "all rows"}</span>, wide: true },
];

function Named({ id }: { id: string | undefined }) {
  return id === undefined ? "–" : <ObjectLink id={id} />;
}

function Deletion({ version }: { version: Version }) {
  const navigate = route.useNavigate();
  async function remove() {
    const path = { dataset: version.dataset_id, version: String(version.version) };
    await take(api.DELETE("/v1/datasets/{dataset}/versions/{version}", { params: { path } }));
    await navigate({ search: {}, replace: true });
    void refreshDatasets();
  }
  const name = `version ${version.version}`;
  return (
    <ConfirmButton label={`Delete ${name}`} title={`Delete ${name}?`} action="Delete the version" onConfirm={remove}>
      <p>{isMade(version) ? "Its files are deleted with it." : "It is cancelled: no file of it is left."} Its number is not used again.</p>
    </ConfirmButton>
  );
}
