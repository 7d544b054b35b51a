import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { api, take } from "@/api/client";
import { get, refresh } from "@/api/get";
import { Field, Input, Select } from "@/components/Field";
import { formatName } from "@/components/format";
import { FormDialog } from "@/components/Form";
import { ENDPOINTS, type Endpoint } from "@/pages/batches/requests";

const WINDOWS = [
  ["1h", "1 hour"],
  ["6h", "6 hours"],
  ["24h", "24 hours"],
  ["7d", "7 days"],
] as const;

/** Ask for the times and the batch of a schedule, and create it. */
export function ScheduleForm({ onClose }: { onClose: () => void }) {
  const [cron, setCron] = useState("0 3 * * *");
  const [timezone, setTimezone] = useState(() => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC");
  const [file, setFile] = useState("");
  const [endpoint, setEndpoint] = useState<Endpoint>("/v1/chat/completions");
  const [window, setWindow] = useState("24h");
  const files = useQuery(get("/v1/files", { query: { purpose: "batch", limit: 100 } }));

  async function create() {
    const batch = { input_file_id: file.trim(), endpoint, completion_window: window, priority: 0, dedupe: false };
    await take(api.POST("/v1/schedules", { body: { cron, timezone, batch } }));
    await refresh("/v1/schedules");
  }

  return (
    <FormDialog title="New schedule" action="Create" failure="The schedule was not created" onSubmit={create} onClose={onClose}>
      <Field label="Times" hint="Five fields: minute, hour, day, month, weekday. 0 3 * * mon-fri is three o’clock on working days." param="cron">
        <Input required maxLength={128} className="input mono" value={cron} onChange={(event) => setCron(event.target.value)} />
      </Field>
      <Field label="Time zone" param="timezone">
        <Input required maxLength={64} value={timezone} onChange={(event) => setTimezone(event.target.value)} />
      </Field>
      <Field label="Input file" hint="The id of a file with the purpose batch. It does not expire while the schedule needs it." param="batch.input_file_id">
        <Input required list="batch-files" placeholder="file-…" maxLength={64} value={file} onChange={(event) => setFile(event.target.value)} />
      </Field>
      <datalist id="batch-files">
        {files.data?.data.map((each) => (
          <option key={each.id} value={each.id}>
            {formatName(each.filename)}
          </option>
        ))}
      </datalist>
      <Field label="Endpoint">
        <Select value={endpoint} onChange={(value) => setEndpoint(value as Endpoint)} options={ENDPOINTS} />
      </Field>
      <Field label="Completion window" hint="Each batch ends within this time.">
        <Select value={window} onChange={setWindow} options={WINDOWS} />
      </Field>
    </FormDialog>
  );
}
