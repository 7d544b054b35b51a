import { adminApi, type Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { Empty } from "@/components/Empty";
import { formatCount, formatName } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Section } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { useProjectNames } from "./projects";

type User = Schema<"OrganizationUser">;
type Invite = Schema<"InviteObject">;
type Group = Schema<"GroupObject">;

/** Projects of a person that are named in a row. */
const MAX_NAMED = 3;

const USERS: readonly Column<User>[] = [
  { id: "email", header: "User", cell: (row) => <Person name={row.name} email={row.email} />, sort: (row) => row.email },
  { id: "role", header: "Organization role", cell: (row) => row.role ?? <span className="muted">none</span>, sort: (row) => row.role },
  {
    id: "projects",
    header: "Projects",
    cell: (row) => <span className="break">{shorten(row.projects.data.map(({ name, role }) => `${formatName(name)} (${role})`))}</span>,
    wide: true,
  },
  { id: "used", header: "Key last used", cell: (row) => <LastUse at={row.api_key_last_used_at} />, sort: (row) => row.api_key_last_used_at, align: "end", wide: true },
  { id: "added", header: "Added", cell: (row) => <Time at={row.added_at} />, sort: (row) => row.added_at, align: "end" },
];

const GROUPS: readonly Column<Group>[] = [
  { id: "name", header: "Group", cell: (row) => <span className="break">{formatName(row.name)}</span>, sort: (row) => row.name },
  { id: "claim", header: "Claim of the identity provider", cell: (row) => (row.claim === null ? <span className="muted">none</span> : <code>{row.claim}</code>) },
  { id: "created", header: "Created", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, align: "end" },
];

/** List the users, invites and groups of the organization. */
export function People() {
  const users = usePages("/v1/organization/users", { query: { limit: 50 } }, { as: adminApi });
  const invites = usePages("/v1/organization/invites", { query: { limit: 20 } }, { as: adminApi });
  const groups = usePages("/v1/organization/groups", { query: { limit: 50 } }, { as: adminApi });
  const projects = useProjectNames();
  const columns: readonly Column<Invite>[] = [
    { id: "email", header: "Address", cell: (row) => <span className="break">{formatName(row.email)}</span>, sort: (row) => row.email },
    { id: "status", header: "State", cell: (row) => <State state={row.status} />, sort: (row) => row.status },
    { id: "role", header: "Organization role", cell: (row) => row.role, sort: (row) => row.role, wide: true },
    {
      id: "projects",
      header: "Projects",
      cell: (row) => <span className="break">{shorten(row.projects.map(({ id, role }) => `${projects.get(id) ?? id} (${role})`))}</span>,
      wide: true,
    },
    { id: "expires", header: "Expires", cell: (row) => <Time at={row.expires_at} />, sort: (row) => row.expires_at, align: "end" },
  ];
  return (
    <>
      <Listed
        what="the users"
        query={users}
        empty={
          <Empty title="No users yet" command="nightmill users invite ada@example.com --owner">
            People log in at /login once an identity provider is set up, and have an invite.
          </Empty>
        }
      >
        <Table label="Users" columns={USERS} rows={users.rows} rowKey={(row) => row.id} />
      </Listed>
      <Section title="Invites">
        <Listed what="the invites" query={invites} empty={<p className="muted">Nobody was invited.</p>}>
          <Table label="Invites" columns={columns} rows={invites.rows} rowKey={(row) => row.id} />
        </Listed>
      </Section>
      <Section title="Groups">
        <Listed what="the groups" query={groups} empty={<p className="muted">There is no group.</p>}>
          <Table label="Groups" columns={GROUPS} rows={groups.rows} rowKey={(row) => row.id} />
        </Listed>
      </Section>
    </>
  );
}

/** Render a person by name, with the address below. */
export function Person({ name, email }: { name: string | null; email: string }) {
  return (
    <span className="break">
      {formatName(name ?? email)}
      {name !== null && <div className="muted small">{formatName(email)}</div>}
    </span>
  );
}

/** Render when a key was last used. */
export function LastUse({ at }: { at: number | null }) {
  return at === null ? <span className="muted">never</span> : <Time at={at} />;
}

function shorten(names: readonly string[]): string {
  const others = names.length - MAX_NAMED;
  return others > 0 ? `${names.slice(0, MAX_NAMED).join(", ")} and ${formatCount(others, "other")}` : names.join(", ");
}
