import { useQuery } from "@tanstack/react-query";

import { get, refresh, usePages } from "@/api/get";

const LISTED = 100;

/** Query the versions of a prompt, the newest first. */
export function useVersions(promptId: string) {
  return usePages("/v1/prompts/{prompt_id}/versions", { path: { prompt_id: promptId }, query: { limit: LISTED, order: "desc" } });
}

/** Query a version of a prompt by its number or a label, as soon as that is known. */
export function useVersion(promptId: string, version: string | undefined) {
  return useQuery({
    ...get("/v1/prompts/{prompt_id}/versions/{version}", { path: { prompt_id: promptId, version: version ?? "" } }),
    enabled: version !== undefined,
  });
}

/** Read again what is shown of prompts. */
export function refreshPrompts(): Promise<void> {
  return refresh("/v1/prompts", "/v1/prompts/{prompt_id}", "/v1/prompts/{prompt_id}/versions", "/v1/prompts/{prompt_id}/versions/{version}");
}
