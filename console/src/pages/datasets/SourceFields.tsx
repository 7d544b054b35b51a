import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { DropZone } from "@/components/DropZone";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";
import { formatBytes, formatName } from "@/components/format";
import { useLeaveQuestion } from "@/components/leaving";
import { sendFile } from "@/pages/files/uploads";

import { ROW_PURPOSES } from "./datasets";

import "./datasets.css";

/** A source of a new version: what names it, and the name of a file. */
export interface ChosenSource {
  readonly id: string;
  readonly name?: string;
}

interface SourceFieldsProps {
  sources: readonly ChosenSource[];
  onChange: (change: (sources: readonly ChosenSource[]) => readonly ChosenSource[]) => void;
}

const LISTED = 100;

/** Let sources be chosen: files of the project, new ones, which are uploaded at once, and others by their ids. */
export function SourceFields({ sources, onChange }: SourceFieldsProps) {
  const files = useQuery(get("/v1/files", { query: { limit: LISTED } }));
  const [id, setId] = useState("");
  const add = (source: ChosenSource) => onChange((before) => (before.some(({ id }) => id === source.id) ? before : [...before, source]));
  const listed = (files.data?.data ?? []).filter(({ id, purpose }) => ROW_PURPOSES.has(purpose) && sources.every((source) => source.id !== id));

  function addNamed() {
    if (id.trim() !== "") add({ id: id.trim() });
    setId("");
  }

  return (
    <div className="stack">
      {sources.length > 0 && (
        <ol className="sources" aria-label="Sources">
          {sources.map(({ id, name }) => (
            <li key={id}>
              <span className="break">{name === undefined ? <code>{id}</code> : formatName(name)}</span>
              <Button tone="plain" className="copy" aria-label={`Remove ${name ?? id}`} onClick={() => onChange((before) => before.filter((source) => source.id !== id))}>
                Remove
              </Button>
            </li>
          ))}
        </ol>
      )}
      <div className="grid halves">
        <Upload onSent={add} />
        <div className="stack">
          <Field label="Add a file of the project">
            <Select
              value=""
              options={[["", "Choose a file …"], ...listed.map((file) => [file.id, `${formatName(file.filename)} (${formatBytes(file.bytes)})`] as const)]}
              onChange={(chosen) => add({ id: chosen, name: listed.find(({ id }) => id === chosen)?.filename })}
            />
          </Field>
          <div className="row by-id">
            <Field label="Add by id" hint="A file, an evaluation run, a batch, or a split: dataset:refunds@1/train">
              <Input
                maxLength={192}
                value={id}
                onChange={(event) => setId(event.target.value)}
                onKeyDown={(event) => {
                  if (event.key !== "Enter") return;
                  event.preventDefault();
                  addNamed();
                }}
              />
            </Field>
            <Button onClick={addNamed}>Add</Button>
          </div>
        </div>
      </div>
      {files.isError && <Failure title="The files could not be listed" error={files.error} />}
    </div>
  );
}

/** Take dropped files, which are uploaded one after the other. */
function Upload({ onSent }: { onSent: (source: ChosenSource) => void }) {
  const [sending, setSending] = useState<string | null>(null);
  const [error, setError] = useState<Error | null>(null);
  useLeaveQuestion(sending !== null);

  async function send(dropped: readonly File[]) {
    setError(null);
    try {
      for (const file of dropped) {
        setSending(file.name);
        const { id } = await sendFile(file, "user_data", new AbortController().signal, () => undefined);
        onSent({ id, name: file.name });
      }
    } catch (reason) {
      setError(reason as Error);
    } finally {
      setSending(null);
    }
  }

  const hint = sending === null ? "JSON Lines: an object a line" : `Uploading ${formatName(sending)} …`;
  return (
    <div className="stack">
      <DropZone multiple label="Drop files of rows here" hint={hint} accept=".jsonl" onFiles={(dropped) => void send(dropped)} />
      {error && <Failure title="The file was not uploaded" error={error} />}
    </div>
  );
}
