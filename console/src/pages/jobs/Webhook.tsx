import { useMutation } from "@tanstack/react-query";

import { api, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { formatDuration } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Card } from "@/components/Page";
import { State } from "@/components/State";
import { Time } from "@/components/Time";

import type { JobObject } from "./life";

type Delivery = Schema<"DeliveryObject">;

const REFRESH = 5_000;

/** Show the deliveries to the job's own webhook, and send them again. */
export function Webhook({ job }: { job: JobObject }) {
  const path = { job_id: job.id };
  const deliveries = usePages("/v1/jobs/{job_id}/deliveries", { path }, { refetchInterval: REFRESH, enabled: job.webhook !== null });
  const replay = useMutation({
    mutationFn: (delivery_id: string) =>
      take(api.POST("/v1/jobs/{job_id}/deliveries/{delivery_id}/replay", { params: { path: { ...path, delivery_id } } })),
    onSuccess: () => refresh("/v1/jobs/{job_id}/deliveries"),
  });
  if (job.webhook === null) return <NoWebhook />;
  return (
    <div className="stack">
      <p className="break">
        <span className="muted">The end of this job is posted to</span> <code>{job.webhook.url}</code>
      </p>
      {replay.isError && <Failure title="The delivery could not be sent again" error={replay.error} />}
      <Listed what="the deliveries" query={deliveries} empty={<p className="muted">There is nothing to deliver before the job has ended.</p>}>
        {deliveries.rows.map((delivery) => (
          <Row key={delivery.id} delivery={delivery} busy={replay.isPending} onReplay={() => replay.mutate(delivery.id)} />
        ))}
      </Listed>
    </div>
  );
}

function Row({ delivery, busy, onReplay }: { delivery: Delivery; busy: boolean; onReplay: () => void }) {
  return (
    <Card className="stack">
      <div className="row">
        <State state={delivery.state} />
        <code>{delivery.event_type}</code>
        <span className="muted">
          {delivery.delivered_at !== null ? (
            <>
              delivered <Time at={delivery.delivered_at} />
            </>
          ) : delivery.next_attempt_at !== null ? (
            <>
              next attempt <Time at={delivery.next_attempt_at} />
            </>
          ) : null}
        </span>
        <Button busy={busy} disabled={delivery.state === "pending"} onClick={onReplay}>
          Send again
        </Button>
      </div>
      <ul className="plain">
        {delivery.attempts.map((attempt) => (
          <li key={`${attempt.at}-${attempt.n}`} className="break">
            Attempt {attempt.n}, <Time at={attempt.at} />: {attempt.status_code === null ? "no answer" : `status ${attempt.status_code}`} in{" "}
            {formatDuration(attempt.seconds)}
            {attempt.error && <span className="bad">, {attempt.error}</span>}
          </li>
        ))}
      </ul>
    </Card>
  );
}

function NoWebhook() {
  return (
    <Empty
      title="This job has no webhook of its own"
      sdk={`batch = client.batches.create(
    input_file_id=file.id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
    extra_body={"webhook": {"url": "https://example.com/hook"}},
)`}
    >
      Webhook endpoints of the project hear of its end, too. A batch can name another URL for itself when it is created.
    </Empty>
  );
}
