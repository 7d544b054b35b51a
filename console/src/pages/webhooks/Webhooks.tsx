import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Quantity } from "@/components/Quantity";
import { Secret } from "@/components/Secret";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { EndpointState } from "./EndpointState";
import { EndpointForm, type EndpointFields } from "./EndpointForm";

type Endpoint = Schema<"EndpointObject">;

const COLUMNS: readonly Column<Endpoint>[] = [
  { id: "name", header: "Name", cell: (row) => row.name, sort: (row) => row.name },
  { id: "url", header: "URL", cell: (row) => <code className="break">{row.url}</code>, sort: (row) => row.url, wide: true },
  { id: "events", header: "Event types", cell: (row) => <Quantity value={row.event_types.length} />, sort: (row) => row.event_types.length, align: "end", wide: true },
  { id: "state", header: "State", cell: (row) => <EndpointState endpoint={row} />, sort: (row) => row.disabled_at ?? 0 },
  { id: "created", header: "Created", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, align: "end" },
];

const FIRST: EndpointFields = { name: "", url: "", event_types: ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"] };

const SDK = `endpoint = client.webhooks.create(
    name="mine",
    url="https://example.com/hook",
    event_types=["batch.completed", "batch.failed"],
)
print(endpoint.signing_secret)  # shown once`;

/** List the webhook endpoints of the project, and create one. */
export default function Webhooks() {
  const [isOpen, setOpen] = useState(false);
  const [secret, setSecret] = useState<string | null>(null);
  const endpoints = usePages("/v1/webhook_endpoints", {});

  async function create(fields: EndpointFields) {
    const made = await take(api.POST("/v1/webhook_endpoints", { body: fields }));
    setSecret(made.signing_secret);
    await refresh("/v1/webhook_endpoints");
  }

  const start = (
    <Button tone="primary" onClick={() => setOpen(true)}>
      New endpoint
    </Button>
  );
  return (
    <Page title="Webhooks" description="URLs of your own that the server calls when a job ends." actions={start}>
      <Listed
        what="the webhook endpoints"
        query={endpoints}
        empty={
          <Empty title="No webhook endpoints yet" command="nightmill webhooks create https://example.com/hook" sdk={SDK}>
            An endpoint gets a signed request when a batch, a response or another job of the project ends, so that your
            application need not ask again and again.
          </Empty>
        }
      >
        <Table
          label="Webhook endpoints"
          columns={COLUMNS}
          rows={endpoints.rows}
          rowKey={(row) => row.id}
          rowLink={(row) => ({ to: "/webhooks/$id", params: { id: row.id } })}
        />
      </Listed>
      {isOpen && <EndpointForm title="New webhook endpoint" action="Create" initial={FIRST} onClose={() => setOpen(false)} onSubmit={create} />}
      <Secret title="The endpoint was created" label="Signing secret" value={secret} onClose={() => setSecret(null)}>
        Your application checks the signature of each request with this secret: <code>client.webhooks.unwrap(body, headers, secret=…)</code>.
      </Secret>
    </Page>
  );
}
