import { useQuery } from "@tanstack/react-query";

import type { Schema } from "@/api/client";
import { getAllAsAdmin } from "@/api/get";
import { useSession } from "@/api/session";
import { formatName } from "@/components/format";

export type Project = Schema<"OrganizationProject">;

/** Use all projects, also the archived ones; the tab has an admin key, or there is no answer. */
export function useProjects() {
  const { adminKey } = useSession();
  const query = { limit: 100, include_archived: true };
  return useQuery({ ...getAllAsAdmin("/v1/organization/projects", { query }), enabled: adminKey !== null });
}

/** Use the names of all projects by their ids. */
export function useProjectNames(): ReadonlyMap<string, string> {
  return new Map(useProjects().data?.map(({ id, name }) => [id, formatName(name)]));
}
