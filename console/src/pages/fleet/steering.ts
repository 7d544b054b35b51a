import { useQueries } from "@tanstack/react-query";

import { adminApi, take, type Schema } from "@/api/client";
import { getAsAdmin, refresh } from "@/api/get";

/** What an operator can pause: a queue, a model, a project or a worker, by its name. */
export interface Target {
  kind: Schema<"NewPause">["kind"];
  name: string;
}

const INTERVAL = 5_000;

/** Query the workers, the pauses and the quarantines of the deployment, again every few seconds. */
export function useOperation(enabled: boolean) {
  const options = { enabled, refetchInterval: INTERVAL };
  return useQueries({
    queries: [
      { ...getAsAdmin("/v1/workers", {}), ...options },
      { ...getAsAdmin("/v1/pauses", {}), ...options },
      { ...getAsAdmin("/v1/quarantines", {}), ...options },
    ],
    combine: ([workers, pauses, quarantines]) => ({
      data:
        workers.data && pauses.data && quarantines.data
          ? { workers: workers.data.data, pauses: pauses.data.data, quarantines: quarantines.data.data }
          : undefined,
      error: workers.error ?? pauses.error ?? quarantines.error,
      refetch: refreshOperation,
    }),
  });
}

function refreshOperation(): Promise<void> {
  return refresh("/v1/workers", "/v1/pauses", "/v1/quarantines");
}

/** Start no new work of the target. */
export async function pause(target: Target): Promise<void> {
  await take(adminApi.POST("/v1/pauses", { body: target }));
  await refreshOperation();
}

/** Start work of the target again; of a model also end its quarantines. */
export async function resume({ kind, name }: Target): Promise<void> {
  await take(adminApi.DELETE("/v1/pauses/{kind}/{target}", { params: { path: { kind, target: name } } }));
  await refreshOperation();
}

/** Heartbeats after a pause that show that a worker knows of it. */
const ACKNOWLEDGED = 3;

/** Return whether nothing runs any more, from what ran right after the pause and what runs now. */
export function isIdle(first: Schema<"Remaining">, now: Schema<"Remaining">): boolean {
  const known = Object.entries(now.heartbeats).every(([worker, count]) => count - (first.heartbeats[worker] ?? 0) >= ACKNOWLEDGED);
  return now.running === 0 && now.other_work === 0 && known;
}
