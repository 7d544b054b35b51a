import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Dialog } from "@/components/Dialog";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { Select } from "@/components/Field";
import { Listed } from "@/components/Listed";
import { Section } from "@/components/Page";
import { Duration } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";
import { formatCount } from "@/components/format";

type Delivery = Schema<"DeliveryObject">;
type Attempt = Schema<"AttemptObject">;

const STATES = ["pending", "delivered", "failed"] as const;

const route = getRouteApi("/webhooks/$id");
const PATH = "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries";
const CHOICES = [["", "Every state"], ...STATES.map((state) => [state, state] as const)] as const;

/** List the deliveries of an endpoint, and send them again. */
export function Deliveries({ endpoint }: { endpoint: string }) {
  const { state } = route.useSearch();
  const navigate = useNavigate({ from: "/webhooks/$id" });
  const [shown, setShown] = useState<Delivery | null>(null);
  const path = { webhook_endpoint_id: endpoint };
  const deliveries = usePages(PATH, { path, query: { state } }, { refetchInterval: 10_000 });
  const replay = useMutation({
    mutationFn: (body: Partial<Schema<"Replay">>) =>
      take(api.POST("/v1/webhook_endpoints/{webhook_endpoint_id}/replay", { params: { path }, body: { missed: false, ...body } })),
    onSuccess: () => refresh(PATH),
  });
  const columns: readonly Column<Delivery>[] = [
    { id: "event", header: "Event", cell: (row) => <code>{row.event_type ?? "removed"}</code> },
    { id: "state", header: "State", cell: (row) => <State state={row.state} /> },
    { id: "answer", header: "Answer", cell: answerOf, wide: true },
    { id: "attempts", header: "Attempts", cell: (row) => <Attempts delivery={row} onOpen={setShown} />, align: "end" },
    { id: "next", header: "Next", cell: (row) => row.next_attempt_at !== null && <Time at={row.next_attempt_at} />, wide: true, align: "end" },
    { id: "created", header: "Created", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, wide: true, align: "end" },
    {
      id: "replay",
      header: "Replay",
      cell: (row) =>
        row.state !== "pending" && (
          <Button className="copy" aria-label={`Send again: ${row.id}`} onClick={() => replay.mutate({ delivery_ids: [row.id] })}>
            Send again
          </Button>
        ),
      align: "end",
    },
  ];
  const actions = (
    <>
      <Select
        aria-label="State of the deliveries"
        value={state ?? ""}
        onChange={(value) => void navigate({ search: { state: STATES.find((each) => each === value) }, replace: true })}
        options={CHOICES}
      />
      <ConfirmButton
        label="Send failed ones again"
        title="Send failed deliveries again?"
        action="Send them again"
        tone="primary"
        onConfirm={() => replay.mutateAsync({ failed_since: 0, missed: true })}
      >
        <p>
          Up to 1,000 deliveries that failed are sent again, and events that happened while the endpoint was disabled. Each
          keeps its <code>webhook-id</code>, by which your application knows what it has handled.
        </p>
      </ConfirmButton>
    </>
  );
  return (
    <Section title="Deliveries" actions={actions}>
      {replay.isError && <Failure title="They could not be sent again" error={replay.error} />}
      <Listed
        what="the deliveries"
        query={deliveries}
        empty={
          <Empty title={state === undefined ? "No deliveries yet" : `No ${state} deliveries`}>
            A delivery is made when an event happens that the endpoint asks for. “Send a test” tries the endpoint now.
          </Empty>
        }
      >
        <Table label="Deliveries" columns={columns} rows={deliveries.rows} rowKey={(row) => row.id} />
      </Listed>
      {shown !== null && <AttemptsDialog delivery={shown} onClose={() => setShown(null)} />}
    </Section>
  );
}

function answerOf(row: Pick<Delivery, "status_code" | "error">) {
  const status = row.status_code === null ? null : `status ${row.status_code}`;
  return <span className="break">{[status, row.error].filter(Boolean).join(": ") || <span className="muted">none yet</span>}</span>;
}

function Attempts({ delivery, onOpen }: { delivery: Delivery; onOpen: (delivery: Delivery) => void }) {
  const count = formatCount(delivery.attempts.length, "attempt");
  if (delivery.attempts.length === 0) return <span className="muted">{count}</span>;
  return (
    <Button className="copy" aria-label={`${count} of ${delivery.id}`} onClick={() => onOpen(delivery)}>
      {count}
    </Button>
  );
}

const ATTEMPT_COLUMNS: readonly Column<Attempt>[] = [
  { id: "n", header: "Attempt", cell: (row) => row.n },
  { id: "at", header: "Time", cell: (row) => <Time at={row.at} exact /> },
  { id: "seconds", header: "Took", cell: (row) => <Duration seconds={row.seconds} />, align: "end" },
  { id: "answer", header: "Answer", cell: answerOf },
];

function AttemptsDialog({ delivery, onClose }: { delivery: Delivery; onClose: () => void }) {
  return (
    <Dialog title="Attempts" open onClose={onClose} className="wide-dialog">
      <div className="stack">
        <p className="muted break">
          Delivery <code>{delivery.id}</code> of event <code>{delivery.event_id}</code>
        </p>
        <Table label="Attempts" columns={ATTEMPT_COLUMNS} rows={delivery.attempts} rowKey={(row) => String(row.n)} />
      </div>
    </Dialog>
  );
}
