import { useQuery } from "@tanstack/react-query";

import { adminApi, type Schema } from "@/api/client";
import { getAllAsAdmin, usePages } from "@/api/get";
import { Empty } from "@/components/Empty";
import { formatName } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Loaded } from "@/components/Loaded";
import { Section } from "@/components/Page";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { Person } from "./People";
import type { Project } from "./projects";
import { Permissions } from "./Roles";

type Member = Schema<"ProjectUser">;
type MemberGroup = Schema<"ProjectGroup">;
type Role = Schema<"RoleObject">;

const USERS: readonly Column<Member>[] = [
  { id: "email", header: "User", cell: (row) => <Person name={row.name} email={row.email} />, sort: (row) => row.email },
  { id: "role", header: "Role", cell: (row) => row.role, sort: (row) => row.role },
  { id: "added", header: "Added", cell: (row) => <Time at={row.added_at} />, sort: (row) => row.added_at, align: "end" },
];

const GROUPS: readonly Column<MemberGroup>[] = [
  { id: "name", header: "Group", cell: (row) => <span className="break">{formatName(row.group_name)}</span>, sort: (row) => row.group_name },
  { id: "added", header: "Added", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, align: "end" },
];

const ROLES: readonly Column<Role>[] = [
  { id: "name", header: "Role", cell: (row) => <span className="break">{formatName(row.name)}</span>, sort: (row) => row.name },
  { id: "permissions", header: "Permissions", cell: (row) => <Permissions names={row.permissions} /> },
];

/** List the users and groups with a role of a project, and the roles that the project has of its own. */
export function Members({ project: { id: project_id, name } }: { project: Project }) {
  const path = { project_id };
  const users = usePages("/v1/organization/projects/{project_id}/users", { path, query: { limit: 50 } }, { as: adminApi });
  const groups = useQuery(getAllAsAdmin("/v1/organization/projects/{project_id}/groups", { path, query: { limit: 100 } }));
  const roles = useQuery(getAllAsAdmin("/v1/projects/{project_id}/roles", { path }));
  return (
    <>
      <Listed
        what="the members"
        query={users}
        empty={
          <Empty title="No members of their own" command={`nightmill users invite eva@example.com --project ${formatName(name)}`}>
            Users and groups may have the project by a role of the organization.
          </Empty>
        }
      >
        <Table label="Members" columns={USERS} rows={users.rows} rowKey={(row) => row.id} />
      </Listed>
      <Section title="Groups">
        <Loaded what="the groups" query={groups}>
          {(rows) =>
            rows.length === 0 ? (
              <p className="muted">No group has a role of this project.</p>
            ) : (
              <Table label="Groups" columns={GROUPS} rows={rows} rowKey={(row) => row.group_id} />
            )
          }
        </Loaded>
      </Section>
      <Section title="Roles of the project">
        <Loaded what="the roles" query={roles}>
          {(rows) => <CustomRoles roles={rows.filter((row) => !row.predefined_role)} />}
        </Loaded>
      </Section>
    </>
  );
}

function CustomRoles({ roles }: { roles: readonly Role[] }) {
  if (roles.length === 0) return <p className="muted">None beside owner, member and viewer.</p>;
  return <Table label="Roles" columns={ROLES} rows={roles} rowKey={(row) => row.id} />;
}
