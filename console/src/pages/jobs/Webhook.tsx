import { useMutation } from "@tanstack/react-query";

import { api, queries, take, type Schema } from "@/api/client";
import { usePages } from "@/api/pages";
import { Button } from "@/components/Button";
import { Empty } from "@/components/Empty";
import { Failure } from "@/components/Failure";
import { formatDuration } from "@/components/format";
import { Loading } from "@/components/Loading";
import { LoadMore } from "@/components/LoadMore";
import { Card } from "@/components/Page";
import { State } from "@/components/State";
import { Time } from "@/components/Time";

import type { JobObject } from "./life";

type Delivery = Schema<"DeliveryObject">;

const REFRESH = 5_000;

/** Show the deliveries to the job's own webhook, and send them again. */
export function Webhook({ job }: { job: JobObject }) {
  const path = { job_id: job.id };
  const key = ["/v1/jobs/{job_id}/deliveries", path];
  const deliveries = usePages(
    key,
    (after, signal) => take(api.GET("/v1/jobs/{job_id}/deliveries", { params: { path, query: { after } }, signal })),
    { refetchInterval: REFRESH, enabled: job.webhook !== null },
  );
  const replay = useMutation({
    mutationFn: (delivery_id: string) =>
      take(api.POST("/v1/jobs/{job_id}/deliveries/{delivery_id}/replay", { params: { path: { ...path, delivery_id } } })),
    onSuccess: () => queries.invalidateQueries({ queryKey: key }),
  });
  if (job.webhook === null) return <NoWebhook />;
  return (
    <div className="stack">
      <p className="break">
        <span className="muted">The end of this job is posted to</span> <code>{job.webhook.url}</code>
      </p>
      {deliveries.isPending && <Loading what="the deliveries" />}
      {deliveries.isError && (
        <Failure title="The deliveries could not be listed" error={deliveries.error} onRetry={() => void deliveries.refetch()} />
      )}
      {replay.isError && <Failure title="The delivery could not be sent again" error={replay.error} />}
      {deliveries.isSuccess && deliveries.rows.length === 0 && <p className="muted">There is nothing to deliver before the job has ended.</p>}
      {deliveries.rows.map((delivery) => (
        <Row key={delivery.id} delivery={delivery} busy={replay.isPending} onReplay={() => replay.mutate(delivery.id)} />
      ))}
      <LoadMore query={deliveries} />
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
