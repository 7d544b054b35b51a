import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

import { Button } from "@/components/Button";
import { DropZone } from "@/components/DropZone";
import { messageOf, Problem } from "@/components/Failure";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { formatCount, formatName, formatNumber } from "@/components/format";
import { useLeaveQuestion } from "@/components/leaving";
import { Section } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { embeds, generates, useModels } from "@/pages/fleet/models/served";
import { cut, SHORT } from "@/pages/jobs/cut";

import { hasSchema, liner, makeRequests, problemsOf, readHead, TEMPLATE_ENDPOINTS, type Endpoint, type TableHead, type Template } from "./requests";
import { SchemaEditor } from "./SchemaEditor";

const PREVIEWED = 3;
const EMPTY: Template = {
  endpoint: "/v1/chat/completions",
  model: "",
  system: "",
  prompt: "",
  limit: null,
  temperature: null,
  columns: [],
  idColumn: null,
};

interface TableFormProps {
  /** Receives the file of the requests once they are made. */
  onRequests: (file: File, endpoint: Endpoint) => void;
  /** Is called when something changes, so that requests that were made are no longer those of the form. */
  onChange: () => void;
}

/** Make the requests of a batch from a table: each row fills a prompt template. */
export function TableForm({ onRequests, onChange }: TableFormProps) {
  const [table, setTable] = useState<File | null>(null);
  useLeaveQuestion(table !== null);
  const head = useMutation({ mutationFn: (file: File) => readHead(file, PREVIEWED) });

  function open([file]: File[]) {
    if (file === undefined) return;
    onChange();
    setTable(file);
    head.mutate(file);
  }

  return (
    <div className="stack">
      <DropZone
        label="Drop a table"
        hint="CSV with the names of the columns in its first line; also with semicolons or tabs."
        accept=".csv,.tsv,.txt,text/csv,text/tab-separated-values"
        onFiles={open}
      />
      {head.isError && (
        <div className="failure" role="alert">
          <strong>The table cannot be read</strong>
          <p>{head.error.message}</p>
        </div>
      )}
      {table && head.data && <TemplateForm key={`${table.name} ${table.lastModified}`} table={table} head={head.data} onRequests={onRequests} onChange={onChange} />}
    </div>
  );
}

interface TemplateFormProps extends TableFormProps {
  table: File;
  head: TableHead;
}

function TemplateForm({ table, head, onRequests, onChange }: TemplateFormProps) {
  const [template, setTemplate] = useState(EMPTY);
  const [count, setCount] = useState(0);
  const problems = problemsOf(template, head.columns);
  const make = useMutation({
    mutationFn: () => makeRequests(table, template, setCount),
    onSuccess: ({ content }) => onRequests(new File([content], `${table.name.replace(/\.[^.]*$/, "")}.jsonl`), template.endpoint),
  });

  function change(changes: Partial<Template>) {
    setTemplate({ ...template, ...changes });
    make.reset();
    onChange();
  }

  return (
    <>
      <p className="break">
        <strong>{formatName(table.name)}</strong> <span className="muted">has the columns</span>{" "}
        {head.columns.map((column, index) => (
          <code key={index}>{`${index > 0 ? " " : ""}{{${column}}}`}</code>
        ))}
      </p>
      {head.isGarbled && <p className="banner">The table is not stored as UTF-8: some characters are lost. Save it as UTF-8 first.</p>}
      <Settings template={template} columns={head.columns} onChange={change} />
      {template.prompt === "" ? null : problems.length > 0 ? (
        <ul className="plain bad" aria-label="What is missing">
          {problems.map((problem) => (
            <li key={problem}>{problem}</li>
          ))}
        </ul>
      ) : (
        <Preview template={template} head={head} />
      )}
      <div className="actions">
        <Button tone={make.isSuccess ? "normal" : "primary"} disabled={problems.length > 0} busy={make.isPending} onClick={() => make.mutate()}>
          Make the requests
        </Button>
        {make.isPending && <span role="status">{formatCount(count, "request")}</span>}
        {make.data && <span role="status">{formatCount(make.data.count, "request")} made</span>}
      </div>
      {make.isError && (
        <Problem title="The requests could not be made">
          <p>{messageOf(make.error)}</p>
        </Problem>
      )}
      {make.data?.unevenRow && (
        <p className="banner">
          Row {formatNumber(make.data.unevenRow)} has more or fewer fields than the first line. Look whether a quote is missing there.
        </p>
      )}
    </>
  );
}

interface SettingsProps {
  template: Template;
  columns: readonly string[];
  onChange: (changes: Partial<Template>) => void;
}

function Settings({ template, columns, onChange }: SettingsProps) {
  const models = useModels();
  const isEmbedding = template.endpoint === "/v1/embeddings";
  const fitting = (models.data?.data ?? []).filter(isEmbedding ? embeds : generates);
  return (
    <>
      <div className="grid">
        <Field label="Endpoint">
          <Select value={template.endpoint} onChange={(endpoint) => onChange({ endpoint: endpoint as Endpoint, model: "" })} options={TEMPLATE_ENDPOINTS} />
        </Field>
        <Field label="Model" error={models.isError ? "The models could not be listed." : null}>
          <Select
            value={template.model}
            onChange={(model) => onChange({ model })}
            options={[["", "Choose a model"], ...fitting.map(({ id }) => [id, id] as const)]}
          />
        </Field>
        {!isEmbedding && (
          <>
            <Field label="Temperature">
              <Input
                type="number"
                min={0}
                max={2}
                step={0.1}
                placeholder="that of the model"
                value={template.temperature ?? ""}
                onChange={(event) => onChange({ temperature: event.target.value === "" ? null : Number(event.target.value) })}
              />
            </Field>
            <Field label="Max output tokens">
              <Input
                type="number"
                min={1}
                placeholder="no limit"
                value={template.limit ?? ""}
                onChange={(event) => onChange({ limit: Number(event.target.value) || null })}
              />
            </Field>
          </>
        )}
        <Field label="custom_id">
          <Select
            value={template.idColumn ?? ""}
            onChange={(column) => onChange({ idColumn: column || null })}
            options={[["", "The number of the row"], ...[...new Set(columns)].filter(Boolean).map((column) => [column, `Column ${column}`] as const)]}
          />
        </Field>
      </div>
      {hasSchema(template) && (
        <Field label="Instructions">
          <TextArea rows={2} placeholder="Answer in one word." value={template.system} onChange={(event) => onChange({ system: event.target.value })} />
        </Field>
      )}
      <Field label="Prompt" hint="{{column}} stands for the value of a row.">
        <TextArea
          placeholder={`Summarize: {{${columns[0] ?? "text"}}}`}
          value={template.prompt}
          onChange={(event) => onChange({ prompt: event.target.value })}
        />
      </Field>
      {hasSchema(template) && <SchemaEditor columns={template.columns} onChange={(columns) => onChange({ columns })} />}
    </>
  );
}

function Preview({ template, head }: { template: Template; head: TableHead }) {
  const line = liner(template, head.columns);
  return (
    <Section title={`The first ${formatCount(head.rows.length, "line")}`}>
      <div className="stack">
        {head.rows.map((row, index) => (
          <Snippet key={index} label={`Line ${index + 1}`} text={cut(pretty(line(row, index + 1)), SHORT).shown} />
        ))}
      </div>
    </Section>
  );
}

function pretty(line: string): string {
  return JSON.stringify(JSON.parse(line), null, 2);
}
