import { getRouteApi } from "@tanstack/react-router";

import { adminApi } from "@/api/client";
import { usePages } from "@/api/get";
import { useSession } from "@/api/session";
import { AdminGate } from "@/components/AdminGate";
import { Page } from "@/components/Page";
import { Tabs } from "@/components/Tabs";

import { organizationSearch } from "./address";
import { AdminKeys } from "./AdminKeys";
import { People } from "./People";
import { Projects } from "./Projects";
import { Roles } from "./Roles";

const route = getRouteApi("/organization");

/** Show the projects, people, roles and admin keys of the organization. */
export default function Organization() {
  const { adminKey } = useSession();
  const { tab = "projects", archived } = route.useSearch();
  const navigate = route.useNavigate();
  const query = { limit: 50, include_archived: archived === true };
  const projects = usePages("/v1/organization/projects", { query }, { as: adminApi, enabled: adminKey !== null });
  return (
    <Page title="Projects and people" description="The projects of the organization, who may do what in them, and the keys that administer it.">
      <AdminGate error={projects.error}>
        <Tabs
          label="Parts of the organization"
          value={tab}
          onChange={(id) => void navigate({ search: organizationSearch({ tab: id, archived }), replace: true })}
          tabs={[
            { id: "projects", title: "Projects", content: <Projects projects={projects} /> },
            { id: "people", title: "People", content: <People /> },
            { id: "roles", title: "Roles", content: <Roles /> },
            { id: "keys", title: "Admin keys", content: <AdminKeys /> },
          ]}
        />
      </AdminGate>
    </Page>
  );
}
