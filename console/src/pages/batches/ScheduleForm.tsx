import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";

import { api, ApiError, take, type Schema } from "@/api/client";
import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { Field, Input, Select } from "@/components/Field";

type Endpoint = Schema<"BatchFields">["endpoint"];

const ENDPOINTS: readonly (readonly [Endpoint, string])[] = [
  ["/v1/chat/completions", "Chat completions"],
  ["/v1/responses", "Responses"],
  ["/v1/completions", "Completions"],
  ["/v1/embeddings", "Embeddings"],
  ["/v1/rerank", "Re-rankings"],
];
const WINDOWS = [
  ["1h", "1 hour"],
  ["6h", "6 hours"],
  ["24h", "24 hours"],
  ["7d", "7 days"],
] as const;
/** The fields of the form by the parameter that the server names in an error. */
const FIELDS = ["cron", "timezone", "batch.input_file_id"];

/** Ask for the times and the batch of a schedule, and create it. */
export function ScheduleForm({ onClose, onCreated }: { onClose: () => void; onCreated: () => Promise<unknown> }) {
  const [cron, setCron] = useState("0 3 * * *");
  const [timezone, setTimezone] = useState(() => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC");
  const [file, setFile] = useState("");
  const [endpoint, setEndpoint] = useState<Endpoint>("/v1/chat/completions");
  const [window, setWindow] = useState("24h");
  const files = useQuery(get("/v1/files", { query: { purpose: "batch", limit: 100 } }));
  const create = useMutation({
    mutationFn: () =>
      take(
        api.POST("/v1/schedules", {
          body: { cron, timezone, batch: { input_file_id: file.trim(), endpoint, completion_window: window, priority: 0, dedupe: false } },
        }),
      ),
    onSuccess: async () => {
      await onCreated();
      onClose();
    },
  });
  const error = create.error instanceof ApiError ? create.error : null;
  const errorOf = (field: string) => (error?.param === field ? error.message : null);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    create.mutate();
  };
  return (
    <Dialog title="New schedule" open onClose={onClose}>
      <form className="stack" onSubmit={submit}>
        <Field label="Times" hint="Five fields: minute, hour, day, month, weekday. 0 3 * * mon-fri is three o’clock on working days." error={errorOf("cron")}>
          <Input required maxLength={128} className="input mono" value={cron} onChange={(event) => setCron(event.target.value)} />
        </Field>
        <Field label="Time zone" error={errorOf("timezone")}>
          <Input required maxLength={64} value={timezone} onChange={(event) => setTimezone(event.target.value)} />
        </Field>
        <Field label="Input file" hint="The id of a file with the purpose batch. It does not expire while the schedule needs it." error={errorOf("batch.input_file_id")}>
          <Input required list="batch-files" placeholder="file-…" maxLength={64} value={file} onChange={(event) => setFile(event.target.value)} />
        </Field>
        <datalist id="batch-files">
          {files.data?.data.map((each) => (
            <option key={each.id} value={each.id}>
              {each.filename}
            </option>
          ))}
        </datalist>
        <Field label="Endpoint">
          <Select value={endpoint} onChange={(value) => setEndpoint(value as Endpoint)} options={ENDPOINTS} />
        </Field>
        <Field label="Completion window" hint="Each batch ends within this time.">
          <Select value={window} onChange={setWindow} options={WINDOWS} />
        </Field>
        {create.isError && !FIELDS.includes(error?.param ?? "") && <Failure title="The schedule was not created" error={create.error} />}
        <div className="actions end">
          <Button onClick={onClose}>Cancel</Button>
          <Button tone="primary" type="submit" busy={create.isPending}>
            Create
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
