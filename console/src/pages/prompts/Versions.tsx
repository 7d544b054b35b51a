import { useMutation } from "@tanstack/react-query";
import { useState, type ComponentProps } from "react";

import { api, take, type Schema } from "@/api/client";
import { Button } from "@/components/Button";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { Listed } from "@/components/Listed";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { describeVersion, labelsOf, type Prompt, type Version } from "./prompts";
import { refreshPrompts, type useVersions } from "./queries";

type Change = Schema<"UpdatePrompt">;

async function update(prompt: Prompt, body: Change): Promise<void> {
  await take(api.POST("/v1/prompts/{prompt_id}", { params: { path: { prompt_id: prompt.id } }, body }));
  await refreshPrompts();
}

interface VersionsProps {
  prompt: Prompt;
  versions: ReturnType<typeof useVersions>;
}

/** List the versions of a prompt, and let the default version and the labels be moved. */
export function Versions({ prompt, versions }: VersionsProps) {
  const [isOpen, setOpen] = useState(false);
  const move = useMutation({ mutationFn: (version: string) => update(prompt, { default_version: version }) });
  const columns: readonly Column<Version>[] = [
    { id: "version", header: "Version", cell: ({ version }) => `Version ${version}`, sort: ({ version }) => Number(version) },
    { id: "labels", header: "Labels", cell: ({ version }) => labelsOf(prompt, version).join(", ") || "–" },
    { id: "model", header: "Model", cell: ({ model }) => <span className="break">{model ?? "–"}</span>, wide: true },
    { id: "created", header: "Created", cell: ({ created_at }) => <Time at={created_at} />, sort: ({ created_at }) => created_at },
    { id: "by", header: "By", cell: ({ created_by }) => <span className="break">{created_by ?? "–"}</span>, wide: true },
    {
      id: "default",
      header: "Default",
      cell: ({ version }) =>
        version === prompt.default_version ? (
          "default"
        ) : (
          <Button className="copy" busy={move.isPending} onClick={() => move.mutate(version)}>
            Make default <span className="hidden">version {version}</span>
          </Button>
        ),
    },
  ];
  return (
    <div className="stack">
      <p className="muted">A request that names no version is answered with the default one. Batches and runs that have begun keep theirs.</p>
      {move.isError && <Failure title="The default version was not changed" error={move.error} />}
      <div className="actions">
        <Button onClick={() => setOpen(true)}>Edit labels</Button>
      </div>
      <Listed what="the versions" query={versions} empty={null}>
        <Table
          label="Versions"
          columns={columns}
          rows={versions.rows}
          rowKey={({ version }) => version}
          rowLink={({ version }) => ({ to: "/prompts/$promptId", params: { promptId: prompt.id }, search: { version } })}
        />
      </Listed>
      {isOpen && <LabelDialog prompt={prompt} versions={versions.rows} onClose={() => setOpen(false)} />}
    </div>
  );
}

interface LabelDialogProps extends Pick<ComponentProps<typeof FormDialog>, "onClose"> {
  prompt: Prompt;
  versions: readonly Version[];
}

/** Edit all labels of a prompt. */
function LabelDialog({ prompt, versions, onClose }: LabelDialogProps) {
  const [labels, setLabels] = useState(() => Object.entries(prompt.labels).map(([name, version]) => ({ name, version })));
  const change = (index: number, next: Partial<(typeof labels)[number]>) => setLabels(labels.map((label, n) => (n === index ? { ...label, ...next } : label)));
  const options = versions.map(({ version }) => [version, describeVersion(prompt, version)] as const);
  return (
    <FormDialog
      title="Labels"
      action="Save the labels"
      failure="The labels were not changed"
      onSubmit={() => update(prompt, { labels: Object.fromEntries(labels.map(({ name, version }) => [name.trim(), version])) })}
      onClose={onClose}
    >
      <p className="muted">A request may name a label in the place of a version: production, staging.</p>
      {labels.map(({ name, version }, index) => (
        <div key={index} className="filters">
          <Field label={`Label ${index + 1}`} param={`labels.${name}`}>
            <Input required maxLength={64} pattern="[A-Za-z][A-Za-z0-9_.\-]*" value={name} onChange={(event) => change(index, { name: event.target.value })} />
          </Field>
          <Field label={`Version of label ${index + 1}`}>
            <Select value={version} options={options} onChange={(version) => change(index, { version })} />
          </Field>
          <Button tone="plain" className="fit" aria-label={`Remove label ${index + 1}`} onClick={() => setLabels(labels.filter((_, n) => n !== index))}>
            Remove
          </Button>
        </div>
      ))}
      <div className="actions">
        <Button onClick={() => setLabels([...labels, { name: "", version: prompt.latest_version }])}>Add a label</Button>
      </div>
    </FormDialog>
  );
}
