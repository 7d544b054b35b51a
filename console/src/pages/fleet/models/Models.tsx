import { getRouteApi, Link } from "@tanstack/react-router";

import { Empty } from "@/components/Empty";
import { Problem } from "@/components/Failure";
import { formatCount } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { Page, Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { ModelDialog } from "./ModelDialog";
import { ModelState } from "./ModelState";
import { PlaygroundLink } from "./ModelLinks";
import { Quarantines } from "./Quarantines";
import { generates, sortModels, useModels, type Model, type NamedModel } from "./served";

const route = getRouteApi("/models");

const NAME: Column<NamedModel> = {
  id: "model",
  header: "Model",
  cell: ({ model }) => <span className="break">{model.id}</span>,
  sort: ({ model }) => model.id,
};
const STATE: Column<NamedModel> = {
  id: "state",
  header: "State",
  cell: ({ model }) => <ModelState model={model} />,
  sort: ({ model }) => model.serving?.state ?? null,
};
const USE: Column<NamedModel> = {
  id: "use",
  header: "Playground",
  cell: ({ model }) => (generates(model) ? <PlaygroundLink model={model.id} label="Open" /> : "–"),
  wide: true,
};
const OWN: readonly Column<NamedModel>[] = [
  NAME,
  STATE,
  {
    id: "workers",
    header: "Workers",
    cell: ({ model }) => model.serving?.workers ?? "–",
    sort: ({ model }) => model.serving?.workers ?? null,
    align: "end",
    wide: true,
  },
  {
    id: "queue",
    header: "Queue",
    cell: ({ model }) => <code className="nowrap">{model.serving?.queue ?? "–"}</code>,
    sort: ({ model }) => model.serving?.queue ?? null,
    wide: true,
  },
  { id: "aliases", header: "Aliases", cell: ({ aliases }) => <Aliases names={aliases} />, wide: true },
  USE,
];
const TUNED: readonly Column<NamedModel>[] = [
  NAME,
  STATE,
  {
    id: "base",
    header: "Base",
    cell: ({ model }) => model.serving?.model ?? "not served any more",
    sort: ({ model }) => model.serving?.model ?? null,
    wide: true,
  },
  {
    id: "created",
    header: "Created",
    cell: ({ model }) => <Time at={model.created} />,
    sort: ({ model }) => model.created,
    wide: true,
  },
  USE,
];
const SHOWN_ALIASES = 3;

/** List the models that requests may name: where each is served, and if it is not, why. */
export default function Models() {
  const models = useModels();
  return (
    <Page title="Models" description="The names that a request may use, and where each is served.">
      <Loaded what="the models" query={models}>
        {({ data }) => <Lists models={data} />}
      </Loaded>
    </Page>
  );
}

function Lists({ models }: { models: readonly Model[] }) {
  const { model: open } = route.useSearch();
  const navigate = route.useNavigate();
  const { own, tuned } = sortModels(models);
  const chosen = [...own, ...tuned].find(({ model, aliases }) => model.id === open || aliases.includes(open ?? ""));
  const isMissing = open !== undefined && chosen === undefined;
  const isQuarantined = models.some(({ serving }) => serving?.state === "quarantined");
  if (own.length === 0) return <NoModels />;
  return (
    <>
      {isMissing && (
        <Problem title="There is no model of this name">
          <p className="break">
            <code>{open}</code> may have been deleted, or belong to another project than your key.
          </p>
        </Problem>
      )}
      <Named label="Models of this deployment" columns={OWN} rows={own} />
      {isQuarantined && <Quarantines />}
      <Section title="Tuned models">
        {tuned.length > 0 ? (
          <Named label="Tuned models" columns={TUNED} rows={tuned} />
        ) : (
          <p className="muted">
            None yet. <Link to="/fine-tuning">Train a model on your own examples</Link>.
          </p>
        )}
      </Section>
      {chosen && <ModelDialog named={chosen} onClose={() => void navigate({ search: {} })} />}
    </>
  );
}

function Named({ label, columns, rows }: { label: string; columns: readonly Column<NamedModel>[]; rows: readonly NamedModel[] }) {
  return (
    <Table
      label={label}
      columns={columns}
      rows={rows}
      rowKey={({ model }) => model.id}
      rowLink={({ model }) => ({ to: "/models", search: { model: model.id } })}
    />
  );
}

function Aliases({ names }: { names: readonly string[] }) {
  if (names.length === 0) return "–";
  const more = names.length - SHOWN_ALIASES;
  return (
    <span className="break name" title={names.join(", ")}>
      {names.slice(0, SHOWN_ALIASES).join(", ")}
      {more > 0 && ` and ${formatCount(more, "other")}`}
    </span>
  );
}

function NoModels() {
  return (
    <Empty
      title="No models yet"
      command="nightmill models add my-model --path /models/my-model"
      sdk={"for model in client.models.list():\n    print(model.id)"}
    >
      The operator names models in the models file; a server behind a URL is one, too.
    </Empty>
  );
}
