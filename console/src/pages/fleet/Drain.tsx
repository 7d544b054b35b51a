import { useMutation, useQuery } from "@tanstack/react-query";

import { getAsAdmin, POLL } from "@/api/get";
import { Button } from "@/components/Button";
import { Dialog } from "@/components/Dialog";
import { Failure } from "@/components/Failure";
import { Facts } from "@/components/Page";
import { Quantity } from "@/components/Quantity";

import { isIdle, pause, type Target } from "./steering";

/** Pause a target, and show what still runs there until nothing does. */
export function Drain({ target, onClose }: { target: Target; onClose: () => void }) {
  const start = useMutation({ mutationFn: () => pause(target) });
  return (
    <Dialog title={`Drain ${target.kind} ${target.name}`} open onClose={onClose}>
      <div className="stack">
        {start.isSuccess ? <Remaining target={target} /> : <p>It is paused, and this dialog shows what still runs there. When nothing does, the process can be stopped without losing work.</p>}
        {start.isError && <Failure error={start.error} />}
        <div className="actions end">
          <Button onClick={onClose}>Close</Button>
          {!start.isSuccess && (
            <Button tone="primary" busy={start.isPending} onClick={() => start.mutate()}>
              Drain it
            </Button>
          )}
        </div>
      </div>
    </Dialog>
  );
}

function Remaining({ target }: { target: Target }) {
  const remaining = getAsAdmin("/v1/pauses/{kind}/{target}", { path: { kind: target.kind, target: target.name } });
  const first = useQuery({ ...remaining, queryKey: [...remaining.queryKey, "first"], staleTime: Infinity, gcTime: 0 });
  const now = useQuery({ ...remaining, enabled: first.isSuccess, refetchInterval: POLL });
  const error = first.error ?? now.error;
  const idle = first.data !== undefined && now.data !== undefined && isIdle(first.data, now.data);
  return (
    <div className="stack">
      <p role="status">
        {idle ? (
          <span className="good">Nothing runs there any more. You can stop the process.</span>
        ) : (
          "It is paused. What runs is being finished …"
        )}
      </p>
      {now.data && (
        <Facts
          facts={[
            ["Shards that run", <Quantity key="running" value={now.data.running} />],
            ["Other work", <Quantity key="other" value={now.data.other_work} />],
          ]}
        />
      )}
      {error && <Failure error={error} />}
      <p className="muted">Closing this dialog leaves it paused; “Resume” starts work there again.</p>
    </div>
  );
}
