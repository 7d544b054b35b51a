import { useQuery } from "@tanstack/react-query";

import { operatorApi, queries, take, type Schema } from "@/api/client";

/** What an operator can pause: a queue, a model, a project or a worker, by its name. */
export interface Target {
  kind: Schema<"NewPause">["kind"];
  name: string;
}

const INTERVAL = 5_000;

/** Query the workers, the pauses and the quarantines of the deployment, again every few seconds. */
export function useOperation(enabled: boolean) {
  return useQuery({
    queryKey: ["/v1/workers"],
    queryFn: async ({ signal }) => {
      const [workers, pauses, quarantines] = await Promise.all([
        take(operatorApi.GET("/v1/workers", { signal })),
        take(operatorApi.GET("/v1/pauses", { signal })),
        take(operatorApi.GET("/v1/quarantines", { signal })),
      ]);
      return { workers: workers.data, pauses: pauses.data, quarantines: quarantines.data };
    },
    enabled,
    refetchInterval: INTERVAL,
  });
}

/** Start no new work of the target. */
export async function pause(target: Target): Promise<void> {
  await take(operatorApi.POST("/v1/pauses", { body: target }));
  await queries.invalidateQueries({ queryKey: ["/v1/workers"] });
}

/** Start work of the target again; of a model also end its quarantines. */
export async function resume({ kind, name }: Target): Promise<void> {
  await take(operatorApi.DELETE("/v1/pauses/{kind}/{target}", { params: { path: { kind, target: name } } }));
  await queries.invalidateQueries({ queryKey: ["/v1/workers"] });
}

/** Return what still runs of the target. */
export function remaining({ kind, name }: Target, signal: AbortSignal): Promise<Schema<"Remaining">> {
  return take(operatorApi.GET("/v1/pauses/{kind}/{target}", { params: { path: { kind, target: name } }, signal }));
}

/** Heartbeats after a pause that show that a worker knows of it. */
const ACKNOWLEDGED = 3;

/** Return whether nothing runs any more, from what ran right after the pause and what runs now. */
export function isIdle(first: Schema<"Remaining">, now: Schema<"Remaining">): boolean {
  const known = Object.entries(now.heartbeats).every(([worker, count]) => count - (first.heartbeats[worker] ?? 0) >= ACKNOWLEDGED);
  return now.running === 0 && now.other_work === 0 && known;
}
