import { useMutation } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState, type FormEvent } from "react";

import { api, take, type Schema } from "@/api/client";
import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { Field, Input } from "@/components/Field";
import { Card, Section } from "@/components/Page";
import { Snippet } from "@/components/Snippet";
import { metadataPairs } from "@/pages/jobs/address";

import type { Endpoint } from "./requests";

type CreatedBatch = Schema<"CreatedBatch">;

const NO_OPTIONS = { window: "24h", priority: "0", metadata: "", webhook: "", dedupe: false };

/** Choose how a checked file is run, and create its batch. */
export function Create({ report, endpoint }: { report: Schema<"BatchValidation">; endpoint: Endpoint }) {
  const navigate = useNavigate();
  const [options, setOptions] = useState(NO_OPTIONS);
  const open = (batch: CreatedBatch) => navigate({ to: "/jobs/$jobId", params: { jobId: batch.id } });
  const create = useMutation({
    mutationFn: () =>
      take(
        api.POST("/v1/batches", {
          body: {
            input_file_id: report.input_file_id,
            endpoint,
            completion_window: options.window.trim(),
            priority: Number(options.priority),
            metadata: Object.fromEntries(metadataPairs(options.metadata)),
            dedupe: options.dedupe,
            webhook: options.webhook.trim() === "" ? null : { url: options.webhook.trim() },
          },
        }),
      ),
    onSuccess: (batch) => (batch.webhook?.signing_secret ? undefined : open(batch)),
  });
  const secret = create.data?.webhook?.signing_secret;

  function change(changes: Partial<typeof NO_OPTIONS>) {
    setOptions({ ...options, ...changes });
  }

  function submit(event: FormEvent) {
    event.preventDefault();
    if (!create.isPending) create.mutate();
  }

  return (
    <Section title="Create">
      <Card>
        <form className="stack" onSubmit={submit}>
          <div className="grid">
            <Field label="Completion window" hint="24h, or 90m, 6h, 7d …">
              <Input required maxLength={16} value={options.window} onChange={(event) => change({ window: event.target.value })} />
            </Field>
            <Field label="Priority" hint="−100 to 100; higher runs first.">
              <Input type="number" required min={-100} max={100} value={options.priority} onChange={(event) => change({ priority: event.target.value })} />
            </Field>
            <Field label="Metadata" hint='Entries such as team=search, note="a, b".'>
              <Input value={options.metadata} onChange={(event) => change({ metadata: event.target.value })} />
            </Field>
            <Field label="Webhook" hint="A URL that hears of this batch's end.">
              <Input type="url" placeholder="https://" value={options.webhook} onChange={(event) => change({ webhook: event.target.value })} />
            </Field>
          </div>
          <label className="row">
            <input type="checkbox" checked={options.dedupe} onChange={(event) => change({ dedupe: event.target.checked })} />
            <span>Run identical requests once</span>
          </label>
          {!report.valid && <p className="bad">With these errors the batch, or some of its lines, would fail.</p>}
          {create.isError && <Failure title="The batch was not created" error={create.error} />}
          <div className="actions">
            <Button type="submit" tone={report.valid ? "primary" : "normal"} busy={create.isPending}>
              {report.valid ? "Create the batch" : "Create it anyway"}
            </Button>
          </div>
        </form>
      </Card>
      {create.data && secret && (
        <Dialog title="The secret of the webhook" open onClose={() => void open(create.data)}>
          <div className="stack">
            <p>The batch is created. Its webhook is signed with this secret, which is shown only now.</p>
            <Snippet label="Secret" text={secret} />
            <div className="actions end">
              <Button tone="primary" onClick={() => void open(create.data)}>
                I have stored it
              </Button>
            </div>
          </div>
        </Dialog>
      )}
    </Section>
  );
}
