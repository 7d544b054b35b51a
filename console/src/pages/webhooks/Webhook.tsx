import { useMutation, useQuery } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { get, refresh } from "@/api/get";
import { Button } from "@/components/Button";
import { Confirm, ConfirmButton } from "@/components/Confirm";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { Field, Select } from "@/components/Field";
import { Loaded } from "@/components/Loaded";
import { Card, Facts, Page } from "@/components/Page";
import { Secret } from "@/components/Secret";
import { Id } from "@/components/Snippet";
import { Time } from "@/components/Time";
import { words } from "@/components/format";

import { Deliveries } from "./Deliveries";
import { EndpointForm, useEventTypes, type EndpointFields } from "./EndpointForm";
import { EndpointState } from "./EndpointState";

type Endpoint = Schema<"EndpointObject">;
type Opened = "edit" | "test" | "rotate" | null;

const route = getRouteApi("/webhooks/$id");
const PATH = "/v1/webhook_endpoints/{webhook_endpoint_id}";

/** Show one webhook endpoint with its deliveries, and change, test, or delete it. */
export default function Webhook() {
  const { id } = route.useParams();
  const path = { webhook_endpoint_id: id };
  const endpoint = useQuery(get(PATH, { path }));
  return (
    <Loaded what="the endpoint" query={endpoint} page="Webhook endpoint">
      {(endpoint) => <Shown endpoint={endpoint} />}
    </Loaded>
  );
}

function Shown({ endpoint }: { endpoint: Endpoint }) {
  const [opened, setOpened] = useState<Opened>(null);
  const [secret, setSecret] = useState<string | null>(null);
  const navigate = useNavigate();
  const path = { webhook_endpoint_id: endpoint.id };
  const close = () => setOpened(null);

  async function change(fields: Partial<EndpointFields>) {
    await take(api.POST(PATH, { params: { path }, body: fields }));
    await refresh(PATH, "/v1/webhook_endpoints");
  }
  async function rotate(keep: boolean) {
    const body = { keep_old_secret_active_for_24_hours: keep };
    setSecret((await take(api.POST(`${PATH}/rotate_secret`, { params: { path }, body }))).signing_secret);
    await refresh(PATH, "/v1/webhook_endpoints");
  }
  async function remove() {
    await take(api.DELETE(PATH, { params: { path } }));
    await refresh("/v1/webhook_endpoints");
    await navigate({ to: "/webhooks" });
  }

  return (
    <Page
      title={endpoint.name}
      badge={<EndpointState endpoint={endpoint} />}
      actions={
        <>
          <Button onClick={() => setOpened("test")}>Send a test</Button>
          <Button onClick={() => setOpened("edit")}>Edit</Button>
          <Button onClick={() => setOpened("rotate")}>Rotate the secret</Button>
          <ConfirmButton label="Delete" title="Delete this endpoint?" action="Delete the endpoint" onConfirm={remove}>
            <p>No event is sent to it any more, and deliveries that wait are not sent.</p>
          </ConfirmButton>
        </>
      }
    >
      <Disabled endpoint={endpoint} onEnable={() => change({})} />
      <Card className="stack">
        <Facts
          facts={[
            ["URL", <code key="url">{endpoint.url}</code>],
            ["Id", <Id key="id" id={endpoint.id} />],
            ["Signing secret", <code key="secret">{endpoint.signing_secret_hint}</code>],
            ["Created", <Time key="created" at={endpoint.created_at} />],
          ]}
        />
        <div>
          <p className="muted small">Event types</p>
          <p className="small break">{endpoint.event_types.join(", ")}</p>
        </div>
      </Card>
      <Deliveries endpoint={endpoint.id} />
      {opened === "edit" && (
        <EndpointForm
          title="Edit the endpoint"
          action="Save"
          initial={{ name: endpoint.name, url: endpoint.url, event_types: endpoint.event_types as EndpointFields["event_types"] }}
          onClose={close}
          onSubmit={change}
        />
      )}
      {opened === "test" && <Test endpoint={endpoint} onClose={close} />}
      {opened === "rotate" && <Rotate onClose={close} onRotate={rotate} />}
      <Secret title="The secret was replaced" label="Signing secret" value={secret} onClose={() => setSecret(null)}>
        Requests are signed with this secret from now on.
      </Secret>
    </Page>
  );
}

function Disabled({ endpoint, onEnable }: { endpoint: Endpoint; onEnable: () => Promise<unknown> }) {
  const enable = useMutation({ mutationFn: onEnable });
  if (endpoint.disabled_at === null) return null;
  return (
    <div className="banner row" role="status">
      <span>
        Disabled <Time at={endpoint.disabled_at} />
        {endpoint.disabled_reason && ` (${words(endpoint.disabled_reason)})`}: events wait until it is enabled again.
      </span>
      <Button busy={enable.isPending} onClick={() => enable.mutate()}>
        Enable
      </Button>
      {enable.isError && <Failure error={enable.error} />}
    </div>
  );
}

function Test({ endpoint, onClose }: { endpoint: Endpoint; onClose: () => void }) {
  const types = useEventTypes();
  const [type, setType] = useState("batch.completed");
  const test = useMutation({
    mutationFn: () =>
      take(
        api.POST(`${PATH}/test`, {
          params: { path: { webhook_endpoint_id: endpoint.id } },
          body: { event_type: type as Schema<"TestEndpoint">["event_type"] },
        }),
      ),
  });
  return (
    <Dialog title="Send a test" open onClose={onClose}>
      <div className="stack">
        <p>A signed event about an object that does not exist is sent at once.</p>
        <Field label="Event type">
          <Select value={type} onChange={setType} options={(types.data?.data ?? [type]).map((each) => [each, each] as const)} />
        </Field>
        {test.isSuccess && (
          <p role="status" className={isAccepted(test.data.status_code) ? "good" : "bad"}>
            The receiver {isAccepted(test.data.status_code) ? "accepted" : "refused"} it with status {test.data.status_code}.
          </p>
        )}
        {test.isError && <Failure title="It could not be sent" error={test.error} />}
        <div className="actions end">
          <Button onClick={onClose}>Close</Button>
          <Button tone="primary" busy={test.isPending} onClick={() => test.mutate()}>
            Send
          </Button>
        </div>
      </div>
    </Dialog>
  );
}

function isAccepted(status: number): boolean {
  return status >= 200 && status < 300;
}

function Rotate({ onClose, onRotate }: { onClose: () => void; onRotate: (keep: boolean) => Promise<unknown> }) {
  const [keep, setKeep] = useState(true);
  return (
    <Confirm title="Replace the signing secret?" action="Replace the secret" tone="primary" open onClose={onClose} onConfirm={() => onRotate(keep)}>
      <p>A new secret is made and shown once. Your application must know it to check signatures.</p>
      <label className="row">
        <input type="checkbox" checked={keep} onChange={(event) => setKeep(event.target.checked)} />
        The old secret signs for another 24 hours, too
      </label>
    </Confirm>
  );
}
