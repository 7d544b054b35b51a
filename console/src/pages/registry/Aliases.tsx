import { useQuery } from "@tanstack/react-query";
import { getRouteApi, Link } from "@tanstack/react-router";

import { api, take, type Schema } from "@/api/client";
import { get, refresh, usePages } from "@/api/get";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { formatCount } from "@/components/format";
import { Listed } from "@/components/Listed";
import { ObjectLink } from "@/components/ObjectLink";
import { Page, Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

type Alias = Schema<"AliasObject">;
type Move = Schema<"AliasMoveObject">;
type Target = Alias["targets"][number];

const route = getRouteApi("/aliases");
/** The seconds whose requests are counted by model. */
const LIVE = 600;
const SDK = `client.post("/aliases", cast_to=object, body={
    "id": "support-bot",
    "targets": [
        {"model": "smollm2-135m-instruct", "weight": 80},
        {"model": tuned_model, "weight": 20},
    ],
    "sticky": True,
})`;

const MOVES: readonly Column<Move>[] = [
  { id: "time", header: "Time", cell: (row) => <Time at={row.created_at} /> },
  { id: "alias", header: "Alias", cell: (row) => <span className="break">{row.alias}</span> },
  { id: "action", header: "Action", cell: (row) => row.action },
  { id: "models", header: "Models", cell: (row) => (row.routing ? <Targets targets={row.routing.targets} /> : "–") },
  { id: "actor", header: "By", cell: (row) => <span className="break">{row.actor}</span>, wide: true },
  { id: "reason", header: "Reason", cell: (row) => <Reason move={row} />, wide: true },
];

/** List the aliases of the project, the shares and the requests of their models, and their moves; take a move back. */
export default function Aliases() {
  const { alias } = route.useSearch();
  const aliases = usePages("/v1/aliases", {}, { refetchInterval: 30_000 });
  const moves = usePages("/v1/alias_moves", { query: { alias } });
  const live = useQuery({ ...get("/v1/throughput", { query: { seconds: LIVE, step: LIVE } }), refetchInterval: 30_000 });
  const requests = new Map(live.data?.interactive.map((model) => [model.model, model.requests]));
  const revert = async ({ id }: Alias) => {
    await take(api.POST("/v1/aliases/{alias}", { params: { path: { alias: id } }, body: { revert: true } }));
    await refresh("/v1/aliases", "/v1/alias_moves");
  };
  const columns: readonly Column<Alias>[] = [
    { id: "alias", header: "Alias", cell: (row) => <Link to="/aliases" search={{ alias: row.id }} className="break">{row.id}</Link>, sort: (row) => row.id },
    { id: "models", header: "Models", cell: (row) => <Models alias={row} requests={requests} /> },
    { id: "sticky", header: "Users", cell: (row) => (row.sticky ? "keep a model" : "draw each time"), wide: true },
    { id: "fallbacks", header: "Fallbacks", cell: (row) => <Fallbacks alias={row} />, wide: true },
    { id: "moved", header: "Moved", cell: (row) => <Time at={row.updated_at} />, sort: (row) => row.updated_at, wide: true },
    { id: "actions", header: "Actions", cell: (row) => <Actions alias={row} onRevert={() => revert(row)} />, align: "end" },
  ];
  return (
    <Page title="Aliases" description="Names that requests may use, the models that answer them, and what they stood for before.">
      <Listed
        what="the aliases"
        query={aliases}
        empty={
          <Empty title="No aliases yet" command="nightmill aliases set support-bot smollm2-135m-instruct" sdk={SDK}>
            An alias is a name of yours for a model: change the model behind it, for all requests or for some.
          </Empty>
        }
      >
        <Table label="Aliases" columns={columns} rows={aliases.rows} rowKey={(row) => row.id} />
      </Listed>
      <Section title={alias === undefined ? "Moves" : `Moves of ${alias}`}>
        {alias !== undefined && <Link to="/aliases">Show those of all aliases</Link>}
        <Listed what="the moves" query={moves} empty={<p className="muted">None yet.</p>}>
          <Table label="Moves" columns={MOVES} rows={moves.rows} rowKey={(row) => row.id} />
        </Listed>
      </Section>
    </Page>
  );
}

/** Render the models of an alias with their percentages, and their requests of the last minutes where they are known. */
function Targets({ targets, requests }: { targets: readonly Target[]; requests?: ReadonlyMap<string, number> }) {
  return targets.map(({ model, weight }) => (
    <div key={model}>
      <span className="break">{model}</span> {weight} %
      {requests && <div className="muted small">{formatCount(requests.get(model) ?? 0, "request")} in 10 minutes</div>}
    </div>
  ));
}

/** Render the models of an alias, and its shadow with what became of its requests in the last day. */
function Models({ alias, requests }: { alias: Alias; requests: ReadonlyMap<string, number> }) {
  const { shadow, shadow_counts: counts } = alias;
  return (
    <>
      <Targets targets={alias.targets} requests={requests} />
      {shadow && (
        <div>
          <span className="break">{shadow.model}</span> shadow of {shadow.share} %
          {counts && (
            <div className="muted small">
              {counts.sent} of {formatCount(counts.requests, "request")} sent in a day, {counts.dropped} dropped, {counts.failed} failed
              {counts.equal != null && `, ${counts.equal} of ${counts.compared} answers the same`}
              {counts.length_ratio != null && `, ${counts.length_ratio.toFixed(2)} times as long`}
            </div>
          )}
        </div>
      )}
    </>
  );
}

/** Render the fallbacks of an alias, and the time in which an answer has to begin. */
function Fallbacks({ alias: { fallbacks, fallback_after: seconds } }: { alias: Alias }) {
  return (
    <>
      <span className="break">{fallbacks.join(", ") || "–"}</span>
      {seconds != null && <div className="muted small">after {seconds} s without an answer</div>}
    </>
  );
}

/** Render why an alias was moved, with the promotion that moved it. */
function Reason({ move: { reason, gate } }: { move: Move }) {
  return (
    <>
      <span className="break">{reason}</span> {typeof gate?.promotion === "string" && <ObjectLink id={gate.promotion} />}
    </>
  );
}

function Actions({ alias, onRevert }: { alias: Alias; onRevert: () => Promise<unknown> }) {
  if (alias.source === "models_file") return <span className="muted">of the models file</span>;
  return (
    <span className="actions end">
      <Link to="/promotions/new" search={{ alias: alias.id }} aria-label={`Promote ${alias.id}`}>
        Promote
      </Link>
      <ConfirmButton small label="Take back" name={`Take back ${alias.id}`} title="Go back to the models before the last move?" action="Take the move back" onConfirm={onRevert}>
        <p>Interactive requests follow within two seconds. Batches that are planned keep their model.</p>
      </ConfirmButton>
    </span>
  );
}
