const ORGANIZATION_TABS = ["projects", "people", "roles", "keys"] as const;
export type OrganizationTab = (typeof ORGANIZATION_TABS)[number];

const PROJECT_TABS = ["keys", "members", "limits", "budget"] as const;
export type ProjectTab = (typeof PROJECT_TABS)[number];

/** The open tab of the organization, projects without one, and whether archived projects are listed too. */
export interface OrganizationSearch {
  tab?: OrganizationTab;
  archived?: true;
}

/** Read the open tab of the organization from the address, where anything may stand. */
export function organizationSearch(given: Record<string, unknown>): OrganizationSearch {
  return {
    tab: ORGANIZATION_TABS.find((tab) => tab !== "projects" && tab === given.tab),
    archived: given.archived === true || undefined,
  };
}

/** The open tab of a project, keys without one. */
export interface ProjectSearch {
  tab?: ProjectTab;
}

/** Read the open tab of a project from the address, where anything may stand. */
export function projectSearch(given: Record<string, unknown>): ProjectSearch {
  return { tab: PROJECT_TABS.find((tab) => tab !== "keys" && tab === given.tab) };
}
