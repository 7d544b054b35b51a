import { useState } from "react";

import { adminApi, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { Listed } from "@/components/Listed";
import { Section } from "@/components/Page";
import { Quantity } from "@/components/Quantity";
import { Table, type Column } from "@/components/Table";

import { fromInput, LIMITS, NO_LIMIT, toInput, type LimitName, type RateLimit } from "./limits";
import type { Project } from "./projects";

type Mode = Schema<"ModelPermissions">["mode"];

const PROJECT = "/v1/organization/projects/{project_id}";
const RATE_LIMITS = `${PROJECT}/rate_limits` as const;
const MODES = [
  ["allow_list", "Only these models"],
  ["deny_list", "All models but these"],
] as const;

/** Show which models a project may use and its limits for each of them, and change both. */
export function Limits({ project }: { project: Project }) {
  const [selected, select] = useState<RateLimit | null>(null);
  const isActive = project.status === "active";
  const limits = usePages(RATE_LIMITS, { path: { project_id: project.id } }, { as: adminApi });
  const columns: readonly Column<RateLimit>[] = [
    { id: "model", header: "Model", cell: (row) => <code className="break">{row.model}</code>, sort: (row) => row.model },
    ...LIMITS.map(({ id, name }, index): Column<RateLimit> => ({ id, header: name, cell: (row) => <Limit value={row[id]} />, sort: (row) => row[id], align: "end", wide: index > 0 })),
    {
      id: "change",
      header: "Change",
      cell: (row) =>
        isActive && (
          <Button className="copy" aria-label={`Change the limits of ${row.model}`} onClick={() => select(row)}>
            Change
          </Button>
        ),
      align: "end",
    },
  ];
  return (
    <>
      <Models project={project} />
      <Section title="Rate limits">
        <Listed what="the limits" query={limits} empty={<p className="muted">The project may use no model.</p>}>
          <Table label="Rate limits" columns={columns} rows={limits.rows} rowKey={(row) => row.id} />
        </Listed>
        {selected !== null && <LimitForm projectId={project.id} limit={selected} onClose={() => select(null)} />}
      </Section>
    </>
  );
}

function Limit({ value }: { value: number }) {
  return value >= NO_LIMIT ? <span className="muted">none</span> : <Quantity value={value} />;
}

function LimitForm({ projectId: project_id, limit, onClose }: { projectId: string; limit: RateLimit; onClose: () => void }) {
  const [texts, setTexts] = useState(() => Object.fromEntries(LIMITS.map(({ id }) => [id, toInput(limit[id])])) as Record<LimitName, string>);
  async function change() {
    const body = Object.fromEntries(LIMITS.map(({ id }) => [id, fromInput(texts[id])])) as Record<LimitName, number>;
    await take(adminApi.POST(`${RATE_LIMITS}/{rate_limit_id}`, { params: { path: { project_id, rate_limit_id: limit.id } }, body }));
    await refresh(RATE_LIMITS);
  }
  return (
    <FormDialog title={`Limits of ${limit.model}`} action="Change the limits" failure="The limits were not changed" onSubmit={change} onClose={onClose}>
      {LIMITS.map(({ id, name }) => (
        <Field key={id} label={name} hint={id === LIMITS[0].id && "Empty: no limit. 0 allows nothing."} param={id}>
          <Input type="number" min="0" step="1" value={texts[id]} onChange={(event) => setTexts({ ...texts, [id]: event.target.value })} />
        </Field>
      ))}
    </FormDialog>
  );
}

/** Show which models the project may use, and change that. */
function Models({ project: { id: project_id, status, model_permissions: rule } }: { project: Project }) {
  const [isOpen, setOpen] = useState(false);
  const [mode, setMode] = useState<Mode>("allow_list");
  const [names, setNames] = useState("");
  const params = { path: { project_id } };

  function open() {
    setMode(rule?.mode ?? "allow_list");
    setNames(rule?.model_ids.join("\n") ?? "");
    setOpen(true);
  }
  async function change() {
    await take(adminApi.POST(`${PROJECT}/model_permissions`, { params, body: { mode, model_ids: names.split(/\s+/).filter(Boolean) } }));
    await refresh(PROJECT, RATE_LIMITS);
  }
  async function remove() {
    await take(adminApi.DELETE(`${PROJECT}/model_permissions`, { params }));
    await refresh(PROJECT, RATE_LIMITS);
  }

  const actions = status === "active" && (
    <>
      <Button onClick={open}>Change the models</Button>
      {rule && (
        <ConfirmButton label="Allow all models" title="Allow all models?" action="Allow all models" tone="primary" onConfirm={remove}>
          <p>The project may use every model of the deployment, also those that come later.</p>
        </ConfirmButton>
      )}
    </>
  );
  return (
    <Section title="Models" actions={actions}>
      {rule ? (
        <p className="break">
          {rule.mode === "allow_list" ? "Only these: " : "All but these: "}
          {rule.model_ids.length > 0 ? rule.model_ids.map((name) => <code key={name}>{name} </code>) : "none"}
        </p>
      ) : (
        <p className="muted">The project may use all models.</p>
      )}
      {isOpen && (
        <FormDialog title="Models of the project" action="Change the models" failure="The models were not changed" onSubmit={change} onClose={() => setOpen(false)}>
          <Field label="The project may use" param="mode">
            <Select value={mode} options={MODES} onChange={(chosen) => setMode(chosen as Mode)} />
          </Field>
          <Field label="Models" hint="One a line. An alias stands for its model, and a model for those that were tuned from it." param="model_ids">
            <TextArea value={names} onChange={(event) => setNames(event.target.value)} />
          </Field>
        </FormDialog>
      )}
    </Section>
  );
}
