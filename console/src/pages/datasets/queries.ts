import { refresh, usePages } from "@/api/get";

import { isMade } from "./datasets";

/** Query the versions of a dataset, the newest first, again and again while one is being made. */
export function useVersions(dataset: string) {
  return usePages("/v1/datasets/{dataset}/versions", { path: { dataset }, query: { limit: 100 } }, { pollWhile: (version) => !isMade(version) });
}

/** Read again what is shown of datasets. */
export function refreshDatasets(): Promise<void> {
  return refresh("/v1/datasets", "/v1/datasets/{dataset}", "/v1/datasets/{dataset}/versions", "/v1/datasets/{dataset}/versions/{version}");
}
