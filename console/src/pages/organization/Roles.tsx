import { adminApi, type Schema } from "@/api/client";
import { usePages } from "@/api/get";
import { formatCount, formatName } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Table, type Column } from "@/components/Table";

type Role = Schema<"RoleObject">;

const COLUMNS: readonly Column<Role>[] = [
  {
    id: "name",
    header: "Role",
    cell: (row) => (
      <span className="name break">
        {formatName(row.name)}
        {row.description && <div className="muted small">{formatName(row.description)}</div>}
      </span>
    ),
    sort: (row) => row.name,
  },
  { id: "kind", header: "Kind", cell: (row) => (row.predefined_role ? "predefined" : "custom"), sort: (row) => String(row.predefined_role), wide: true },
  { id: "id", header: "Id", cell: (row) => <code className="nowrap">{row.id}</code>, wide: true },
  {
    id: "permissions",
    header: "Permissions",
    cell: (row) => (
      <details>
        <summary>{formatCount(row.permissions.length, "permission")}</summary>
        <Permissions names={row.permissions} />
      </details>
    ),
    sort: (row) => row.permissions.length,
  },
];

/** List the roles of the organization with their permissions. */
export function Roles() {
  const roles = usePages("/v1/organization/roles", { query: { limit: 100 } }, { as: adminApi });
  return (
    <Listed what="the roles" query={roles} empty={<p className="muted">There is no role.</p>}>
      <Table label="Roles" columns={COLUMNS} rows={roles.rows} rowKey={(row) => row.id} />
    </Listed>
  );
}

/** Render permissions by their names. */
export function Permissions({ names }: { names: readonly string[] }) {
  return (
    <span className="small break">
      {names.map((name, index) => (
        <span key={name}>
          {index > 0 && ", "}
          <code>{name}</code>
        </span>
      ))}
    </span>
  );
}
