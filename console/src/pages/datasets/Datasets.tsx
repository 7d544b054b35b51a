import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, take } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Field, Input, Select } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { datasetBody, describeSplit, EMPTY_DATASET, hasParts, partsOf, SPLITS, type Dataset, type DatasetForm } from "./datasets";

const route = getRouteApi("/datasets");
const PAGE = 50;

const COLUMNS: readonly Column<Dataset>[] = [
  { id: "name", header: "Dataset", cell: ({ name }) => <span className="break">{name}</span>, sort: ({ name }) => name },
  { id: "version", header: "Version", cell: ({ latest_version }) => latest_version ?? "–", sort: ({ latest_version }) => latest_version, align: "end" },
  { id: "split", header: "Split", cell: (dataset) => <span className="break">{describeSplit(dataset)}</span> },
  { id: "description", header: "Description", cell: ({ description }) => <span className="break">{clip(description)}</span>, wide: true },
  { id: "created", header: "Created", cell: ({ created_at }) => <Time at={created_at} />, sort: ({ created_at }) => created_at, wide: true },
];

const MAX_SHOWN = 120;

function clip(text: string | null): string {
  return text === null ? "–" : text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)} …` : text;
}

/** List the project's datasets, and create new ones. */
export default function Datasets() {
  const [isCreating, setCreating] = useState(false);
  const datasets = usePages("/v1/datasets", { query: { limit: PAGE } });
  const create = (
    <Button tone="primary" onClick={() => setCreating(true)}>
      New dataset
    </Button>
  );
  return (
    <Page title="Datasets" description="Named rows in versions that never change, each split into files for training and evaluation." actions={create}>
      <Listed what="the datasets" query={datasets} empty={<NoDatasets />}>
        <Table
          label="Datasets"
          columns={COLUMNS}
          rows={datasets.rows}
          rowKey={({ id }) => id}
          rowLink={({ id }) => ({ to: "/datasets/$datasetId", params: { datasetId: id } })}
        />
      </Listed>
      {isCreating && <NewDataset onClose={() => setCreating(false)} />}
    </Page>
  );
}

function NewDataset({ onClose }: { onClose: () => void }) {
  const navigate = route.useNavigate();
  const [form, setForm] = useState(EMPTY_DATASET);
  const isPartsWrong = hasParts(form) && partsOf(form.parts) === null;

  async function create() {
    const { id } = await take(api.POST("/v1/datasets", { body: datasetBody(form) }));
    await refresh("/v1/datasets");
    await navigate({ to: "/datasets/$datasetId", params: { datasetId: id } });
  }

  return (
    <FormDialog title="New dataset" action="Create the dataset" failure="The dataset was not created" disabled={isPartsWrong} onSubmit={create} onClose={onClose}>
      <Field label="Name" param="name" hint="Letters, digits, dots and dashes. Jobs refer to it: dataset:refunds/train">
        <Input required maxLength={63} pattern="[A-Za-z0-9][A-Za-z0-9._\-]*" placeholder="refunds" value={form.name} onChange={(event) => setForm({ ...form, name: event.target.value })} />
      </Field>
      <Field label="Description" param="description">
        <Input maxLength={4096} value={form.description} onChange={(event) => setForm({ ...form, description: event.target.value })} />
      </Field>
      <SplitFields form={form} onChange={(change) => setForm({ ...form, ...change })} />
      <p className="muted small">The split and the seed hold for all versions and never change: a row stays in its part, whatever later versions add.</p>
    </FormDialog>
  );
}

function SplitFields({ form, onChange }: { form: DatasetForm; onChange: (change: Partial<DatasetForm>) => void }) {
  const isParted = hasParts(form);
  return (
    <>
      <Field label="Split">
        <Select value={form.split} options={SPLITS} onChange={(split) => onChange({ split: split as DatasetForm["split"] })} />
      </Field>
      {isParted && (
        <Field label="Parts" hint="Names and fractions that add up to 1." error={partsOf(form.parts) === null ? "Write names and fractions: train=0.8, test=0.2" : null}>
          <Input value={form.parts} onChange={(event) => onChange({ parts: event.target.value })} />
        </Field>
      )}
      {form.split === "k_fold" && (
        <Field label="Folds">
          <Input type="number" required min={2} max={10} value={form.folds} onChange={(event) => onChange({ folds: event.target.value })} />
        </Field>
      )}
      {form.split !== "none" && form.split !== "random" && (
        <Field label="Value to split by" hint={HINTS[form.split]}>
          <Input required={isParted} maxLength={255} pattern="(\/[^\/]+)+" placeholder="/user/id" value={form.by} onChange={(event) => onChange({ by: event.target.value })} />
        </Field>
      )}
      {form.split !== "none" && (
        <Field label="Seed" param="seed" hint="Another seed splits the same rows otherwise.">
          <Input type="number" required min={0} max={2 ** 31 - 1} value={form.seed} onChange={(event) => onChange({ seed: event.target.value })} />
        </Field>
      )}
    </>
  );
}

const HINTS = {
  group: "A JSON pointer into each row: /user/id",
  temporal: "A JSON pointer to the time of each row, in seconds or ISO 8601: /created_at",
  k_fold: "A JSON pointer, for rows that stay together. Empty: each row for itself.",
} as const;

function NoDatasets() {
  return (
    <Empty title="No datasets yet" command={"nightmill datasets create refunds --split train=0.8,test=0.2\nnightmill datasets add refunds tickets.jsonl"}>
      A dataset is a name for rows of files, stored answers and evaluation runs. Fine-tuning, evaluations and batches name a split of it in the place of a
      file: dataset:refunds@1/train.
    </Empty>
  );
}
