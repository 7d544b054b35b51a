import { useQuery } from "@tanstack/react-query";
import { useState, type ReactNode } from "react";

import { api, type Schema } from "@/api/client";
import { get, refresh } from "@/api/get";
import { Field, Input, Select } from "@/components/Field";
import { Form } from "@/components/Form";
import { formatBytes } from "@/components/format";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Facts, Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

type ModelVersion = Schema<"ModelVersionObject">;
type Move = Schema<"ModelMoveObject">;
type Stage = ModelVersion["stage"];

const PATH = "/v1/model_versions/{model_version}";
const STAGES: readonly (readonly [Stage, string])[] = [
  ["none", "none"],
  ["staging", "staging"],
  ["production", "production"],
  ["archived", "archived"],
];
const MOVES: readonly Column<Move>[] = [
  { id: "at", header: "When", cell: ({ created_at }) => <Time at={created_at} /> },
  { id: "stage", header: "Stage", cell: ({ former_stage, stage }) => `${former_stage} → ${stage}` },
  { id: "actor", header: "Who", cell: ({ actor }) => <span className="break">{actor}</span>, wide: true },
  { id: "reason", header: "Why", cell: ({ reason, gate }) => <Reason reason={reason} promotion={gate?.promotion} /> },
];

/** Show the version that a tuned model is, and let it be moved to another stage. */
export function Version({ model }: { model: string }) {
  const version = useQuery(get(PATH, { path: { model_version: model } }));
  const moves = useQuery(get(`${PATH}/moves`, { path: { model_version: model }, query: { limit: 20 } }));
  return (
    <Loaded what="the version" query={version}>
      {(version) => (
        <div className="stack">
          <Facts facts={factsOf(version)} />
          <StageForm key={version.stage} version={version} />
          {moves.data && moves.data.data.length > 0 && (
            <Section title="Moves">
              <Table label="Moves" columns={MOVES} rows={moves.data.data} rowKey={({ id }) => id} />
            </Section>
          )}
        </div>
      )}
    </Loaded>
  );
}

function Reason({ reason, promotion }: { reason: string | null; promotion: unknown }) {
  if (typeof promotion !== "string") return <span className="break">{reason ?? "–"}</span>;
  return (
    <span className="break">
      {reason} <ObjectLink id={promotion} />
    </span>
  );
}

function factsOf(version: ModelVersion): (readonly [string, ReactNode])[] {
  return [
    ["Family", version.family],
    ["Version", version.semantic_version ? `${version.number}, ${version.semantic_version}` : version.number],
    ["Stage", version.stage],
    ["License", version.license],
    ["Size", version.bytes !== null && formatBytes(version.bytes)],
    ["Git commit", version.git_commit],
    ["DVC hash", version.dvc_hash],
    ["Trained for", version.created_by],
  ];
}

function StageForm({ version }: { version: ModelVersion }) {
  const [stage, setStage] = useState<string>(version.stage);
  const [reason, setReason] = useState("");
  const [archives, setArchives] = useState(false);

  async function move() {
    const body = { stage: stage as Stage, reason: reason.trim() || null, archive_existing: archives };
    await api.POST(PATH, { params: { path: { model_version: version.id } }, body });
    await refresh(PATH, `${PATH}/moves`);
  }

  return (
    <Form action="Change the stage" failure="The stage was not changed" disabled={stage === version.stage} onSubmit={move}>
      <Field label="New stage" param="stage">
        <Select value={stage} options={STAGES} onChange={setStage} />
      </Field>
      <Field label="Reason" param="reason">
        <Input maxLength={512} placeholder="Two points better on the support eval" value={reason} onChange={(event) => setReason(event.target.value)} />
      </Field>
      {stage === "production" && (
        <label className="row">
          <input type="checkbox" checked={archives} onChange={(event) => setArchives(event.target.checked)} />
          Archive the version that is in production
        </label>
      )}
    </Form>
  );
}
