import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { get } from "@/api/get";
import { DropZone } from "@/components/DropZone";
import { Failure } from "@/components/Failure";
import { Field, Select } from "@/components/Field";
import { formatBytes, formatName } from "@/components/format";
import { sendFile } from "@/pages/files/uploads";

interface FileChoiceProps {
  label: string;
  purpose: "fine-tune" | "evals" | "user_data";
  /** The id of the chosen file, empty for none. */
  value: string;
  onChange: (id: string) => void;
  /** What a line of the file holds. */
  hint: string;
}

const LISTED = 100;

/** Let a file of the project be chosen, or a new one be dropped, which is uploaded at once. */
export function FileChoice({ label, purpose, value, onChange, hint }: FileChoiceProps) {
  const files = useQuery(get("/v1/files", { query: { purpose, limit: LISTED } }));
  const [sending, setSending] = useState<string | null>(null);
  const [error, setError] = useState<Error | null>(null);

  async function send([file]: File[]) {
    if (file === undefined) return;
    setSending(file.name);
    setError(null);
    try {
      const object = await sendFile(file, purpose, new AbortController().signal, () => undefined);
      await files.refetch();
      onChange(object.id);
    } catch (reason) {
      setError(reason as Error);
    } finally {
      setSending(null);
    }
  }

  const options = (files.data?.data ?? []).map((file) => [file.id, `${formatName(file.filename)} (${formatBytes(file.bytes)})`] as const);
  return (
    <div className="stack">
      <Field label={label} hint={hint}>
        <Select value={value} onChange={onChange} options={[["", "Choose a file …"], ...options]} />
      </Field>
      <DropZone label="Drop a new file here" hint={sending === null ? undefined : `Uploading ${formatName(sending)} …`} accept=".jsonl" onFiles={(dropped) => void send(dropped)} />
      {files.isError && <Failure title="The files could not be listed" error={files.error} />}
      {error && <Failure title="The file was not uploaded" error={error} />}
    </div>
  );
}
