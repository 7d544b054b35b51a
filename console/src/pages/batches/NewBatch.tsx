import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { get } from "@/api/get";
import { Button } from "@/components/Button";
import { DropZone } from "@/components/DropZone";
import { Failure } from "@/components/Failure";
import { Field, Select } from "@/components/Field";
import { formatBytes, formatCount, formatName } from "@/components/format";
import { useLeaveQuestion } from "@/components/leaving";
import { Loaded } from "@/components/Loaded";
import { ObjectLink } from "@/components/ObjectLink";
import { Card, Facts, Page, Section } from "@/components/Page";
import { Duration, Quantity } from "@/components/Quantity";
import { Snippet } from "@/components/Snippet";
import { State } from "@/components/State";
import { Tabs } from "@/components/Tabs";
import { sendFile } from "@/pages/files/uploads";
import { InputErrors } from "@/pages/jobs/InputErrors";

import { Create } from "./Create";
import { endpointOf, ENDPOINTS, type Endpoint } from "./requests";
import type { Source } from "./address";
import { TableForm } from "./TableForm";

const route = getRouteApi("/batches/new");

const EXAMPLE =
  '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", ' +
  '"body": {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hello"}]}}';

/** The requests of the batch that is being made: a file of this computer, or one that is uploaded. */
type Input = { content: File } | { fileId: string };

/** Make a batch: from a file of requests, from a table by a prompt template, or from a file that is uploaded. */
export default function NewBatch() {
  const { source = "requests", file } = route.useSearch();
  const navigate = route.useNavigate();
  const [input, setInput] = useState<Input | null>(file === undefined ? null : { fileId: file });
  const [endpoint, setEndpoint] = useState<Endpoint>("/v1/chat/completions");
  useLeaveQuestion(input !== null && "content" in input);

  async function takeRequests(content: File) {
    setInput({ content });
    setEndpoint((await endpointOf(content)) ?? endpoint);
  }

  function takeTable(content: File, chosen: Endpoint) {
    setInput({ content });
    setEndpoint(chosen);
  }

  function open(next: string) {
    setInput(null);
    void navigate({ search: { source: next as Source } });
  }

  return (
    <Page title="New batch" description="A batch runs a file of requests in the background and gives one result for each of them.">
      <Tabs
        label="Where the requests come from"
        value={file === undefined ? source : "file"}
        onChange={open}
        tabs={[
          { id: "requests", title: "Requests", content: <RequestsForm input={input} onFile={(content) => void takeRequests(content)} /> },
          { id: "table", title: "Table", content: <TableForm onRequests={takeTable} onChange={() => setInput(null)} /> },
          { id: "file", title: "Uploaded file", content: <UploadedForm fileId={input && "fileId" in input ? input.fileId : ""} onFile={(fileId) => setInput({ fileId })} /> },
        ]}
      />
      {input && (
        <Check
          key={"fileId" in input ? input.fileId : `${input.content.name} ${input.content.lastModified} ${input.content.size}`}
          input={input}
          endpoint={endpoint}
          onEndpoint={setEndpoint}
        />
      )}
    </Page>
  );
}

function RequestsForm({ input, onFile }: { input: Input | null; onFile: (file: File) => void }) {
  return (
    <div className="stack">
      <DropZone
        label="Drop a file of requests"
        hint="JSON Lines, as OpenAI's Batch API takes it: one request a line."
        accept=".jsonl,.ndjson,.txt,application/jsonl"
        onFiles={([file]) => file && onFile(file)}
      />
      {input === null && (
        <>
          <p className="muted">A file with one request looks like this. To ask the same of many texts, open the tab Table.</p>
          <Snippet label="requests.jsonl" text={EXAMPLE} />
        </>
      )}
      {input && "content" in input && (
        <p className="break">
          <strong>{formatName(input.content.name)}</strong> <span className="muted">{formatBytes(input.content.size)}</span>
        </p>
      )}
    </div>
  );
}

function UploadedForm({ fileId, onFile }: { fileId: string; onFile: (fileId: string) => void }) {
  const files = useQuery(get("/v1/files", { query: { purpose: "batch", limit: 100 } }));
  return (
    <Loaded what="the files" query={files}>
      {({ data }) => {
        const options = data.map((file) => [file.id, `${formatName(file.filename)} (${formatBytes(file.bytes)}, ${file.id})`] as const);
        return (
          <Field label="File" hint="The last files of purpose batch.">
            <Select value={fileId} onChange={onFile} options={[["", "Choose a file"], ...options]} />
          </Field>
        );
      }}
    </Loaded>
  );
}

interface CheckProps {
  input: Input;
  endpoint: Endpoint;
  onEndpoint: (endpoint: Endpoint) => void;
}

/** Upload the requests, have the server check them, and then offer to create the batch. */
function Check({ input, endpoint, onEndpoint }: CheckProps) {
  const [sent, setSent] = useState(0);
  const [fileId, setFileId] = useState("fileId" in input ? input.fileId : null);
  const check = useMutation({
    mutationFn: async () => {
      const input_file_id = fileId ?? (await upload());
      setFileId(input_file_id);
      return take(api.POST("/v1/batches/validate", { body: { input_file_id, endpoint } }));
    },
  });

  async function upload(): Promise<string> {
    const { content } = input as { content: File };
    setSent(0);
    const file = await sendFile(content, "batch", new AbortController().signal, (bytes) => setSent((before) => before + bytes));
    return file.id;
  }

  function choose(chosen: string) {
    check.reset();
    onEndpoint(chosen as Endpoint);
  }

  return (
    <Section title="Check">
      <div className="stack">
        <div className="filters">
          <Field label="Endpoint">
            <Select value={endpoint} onChange={choose} options={ENDPOINTS} />
          </Field>
          <Button tone={check.isSuccess ? "normal" : "primary"} className="fit" busy={check.isPending} onClick={() => check.mutate()}>
            {"content" in input && fileId === null ? "Upload and check" : "Check"}
          </Button>
        </div>
        {check.isPending && (
          <p className="muted" role="status">
            {fileId === null && "content" in input
              ? `Uploading: ${formatBytes(sent)} of ${formatBytes(input.content.size)}`
              : "The server reads every line …"}
          </p>
        )}
        {check.isError && <Failure title="The requests could not be checked" error={check.error} />}
        {check.data && <Report report={check.data} />}
      </div>
      {check.data && <Create key={`${check.data.input_file_id} ${endpoint}`} report={check.data} endpoint={endpoint} />}
    </Section>
  );
}

/** Show what the server found in the requests. */
function Report({ report }: { report: Schema<"BatchValidation"> }) {
  const errors = report.errors.data;
  return (
    <>
      <Card className="stack">
        <div className="row">
          <State state={report.valid ? "ready" : "failed"} />
          <span>{report.valid ? "Every line can be run." : `${formatCount(errors.length, "error")}${report.errors_truncated ? " and more" : ""}.`}</span>
        </div>
        <Facts
          facts={[
            ["Requests", <Quantity key="requests" value={report.requests} />],
            ["Model", report.model],
            ["Input tokens, about", <Quantity key="tokens" value={report.estimate.input_tokens} />],
            ["Time, about", report.eta_seconds === null ? "not known yet" : <Duration key="eta" seconds={report.eta_seconds} />],
            ["Size", formatBytes(report.bytes)],
            ["File", <ObjectLink withCopy key="file" id={report.input_file_id} />],
          ]}
        />
      </Card>
      <InputErrors errors={errors} title="Errors" />
    </>
  );
}
