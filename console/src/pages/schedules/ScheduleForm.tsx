import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { api, take } from "@/api/client";
import { get, refresh } from "@/api/get";
import { Field, Input, Select, TextArea } from "@/components/Field";
import { formatName } from "@/components/format";
import { FormDialog } from "@/components/Form";
import { ENDPOINTS, type Endpoint } from "@/pages/batches/requests";
import { readEntries } from "@/pages/pipelines/definition";

import { KIND_OPTIONS, KINDS, type Kind } from "./schedules";

const WINDOWS = [
  ["1h", "1 hour"],
  ["6h", "6 hours"],
  ["24h", "24 hours"],
  ["7d", "7 days"],
] as const;
const ROWS = 12;

interface Batch {
  file: string;
  endpoint: Endpoint;
  window: string;
}

/** Ask for the times and the job of a schedule, and create it. */
export function ScheduleForm({ onClose }: { onClose: () => void }) {
  const [cron, setCron] = useState("0 3 * * *");
  const [timezone, setTimezone] = useState(() => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC");
  const [kind, setKind] = useState<Kind>("batch");
  const [batch, setBatch] = useState<Batch>({ file: "", endpoint: "/v1/chat/completions", window: "24h" });
  const [text, setText] = useState("");
  const { request, problem } = read(text);

  async function create() {
    const job =
      kind === "batch"
        ? { batch: { input_file_id: batch.file.trim(), endpoint: batch.endpoint, completion_window: batch.window, priority: 0, dedupe: false } }
        : { job: { ...request, type: kind } as never }; // the server checks what was written
    await take(api.POST("/v1/schedules", { body: { cron, timezone, ...job } }));
    await refresh("/v1/schedules");
  }

  return (
    <FormDialog
      title="New schedule"
      action="Create"
      failure="The schedule was not created"
      disabled={kind !== "batch" && request === null}
      onSubmit={create}
      onClose={onClose}
    >
      <Field label="Times" hint="Five fields: minute, hour, day, month, weekday. 0 3 * * mon-fri is three o’clock on working days." param="cron">
        <Input required maxLength={128} className="input mono" value={cron} onChange={(event) => setCron(event.target.value)} />
      </Field>
      <Field label="Time zone" param="timezone">
        <Input required maxLength={64} value={timezone} onChange={(event) => setTimezone(event.target.value)} />
      </Field>
      <Field label="Kind">
        <Select value={kind} options={KIND_OPTIONS} onChange={(value) => setKind(value as Kind)} />
      </Field>
      {kind === "batch" ? (
        <BatchFields batch={batch} onChange={(change) => setBatch({ ...batch, ...change })} />
      ) : (
        <Field label="Request" hint="YAML or JSON: the fields that the API takes for such a job. Files are named by their ids." error={problem}>
          <TextArea
            required
            className="input mono"
            rows={ROWS}
            spellCheck={false}
            placeholder={KINDS[kind].example}
            value={text}
            onChange={(event) => setText(event.target.value)}
          />
        </Field>
      )}
    </FormDialog>
  );
}

function BatchFields({ batch, onChange }: { batch: Batch; onChange: (change: Partial<Batch>) => void }) {
  const files = useQuery(get("/v1/files", { query: { purpose: "batch", limit: 100 } }));
  return (
    <>
      <Field label="Input file" hint="The id of a file with the purpose batch. It does not expire while the schedule needs it." param="batch.input_file_id">
        <Input required list="batch-files" placeholder="file-…" maxLength={64} value={batch.file} onChange={(event) => onChange({ file: event.target.value })} />
      </Field>
      <datalist id="batch-files">
        {files.data?.data.map((each) => (
          <option key={each.id} value={each.id}>
            {formatName(each.filename)}
          </option>
        ))}
      </datalist>
      <Field label="Endpoint">
        <Select value={batch.endpoint} onChange={(value) => onChange({ endpoint: value as Endpoint })} options={ENDPOINTS} />
      </Field>
      <Field label="Completion window" hint="Each batch ends within this time.">
        <Select value={batch.window} onChange={(window) => onChange({ window })} options={WINDOWS} />
      </Field>
    </>
  );
}

function read(text: string): { request: Readonly<Record<string, unknown>> | null; problem: string | null } {
  if (text.trim() === "") return { request: null, problem: null };
  try {
    return { request: readEntries(text), problem: null };
  } catch (error) {
    return { request: null, problem: (error as SyntaxError).message };
  }
}
