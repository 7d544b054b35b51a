import { useState } from "react";

import { adminApi, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { formatName } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Section } from "@/components/Page";
import { Secret } from "@/components/Secret";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { KeyForm } from "./KeyForm";
import { KeyName, Scopes } from "./keys";
import { LastUse } from "./People";
import type { Project } from "./projects";

type Key = Schema<"OrganizationProjectKey">;
type ServiceAccount = Schema<"ServiceAccountObject">;

const KEYS = "/v1/organization/projects/{project_id}/api_keys";
const ACCOUNTS = "/v1/organization/projects/{project_id}/service_accounts";

/** List the keys and the service accounts of a project, create them, and delete those that are not needed. */
export function ProjectKeys({ project: { id: project_id, status } }: { project: Project }) {
  const [secret, setSecret] = useState<string | null>(null);
  const isActive = status === "active";
  const keys = usePages(KEYS, { path: { project_id }, query: { limit: 50 } }, { as: adminApi });
  const columns: readonly Column<Key>[] = [
    { id: "key", header: "Key", cell: (row) => <KeyName name={row.name} redacted={row.redacted_value} />, sort: (row) => row.name },
    { id: "owner", header: "Owner", cell: (row) => <span className="break">{ownerOf(row)}</span>, sort: ownerOf, wide: true },
    { id: "scopes", header: "Scopes", cell: (row) => <Scopes names={row.scopes} />, wide: true },
    { id: "used", header: "Last used", cell: (row) => <LastUse at={row.last_used_at} />, sort: (row) => row.last_used_at, align: "end" },
    { id: "expires", header: "Expires", cell: (row) => (row.expires_at === null ? "never" : <Time at={row.expires_at} />), sort: (row) => row.expires_at, align: "end", wide: true },
    { id: "revoke", header: "Revoke", cell: (row) => <Revocation projectId={project_id} apiKey={row} />, align: "end" },
  ];
  return (
    <>
      <Listed what="the keys" query={keys} empty={<p className="muted">The project has no keys. A service account gets them below.</p>}>
        <Table label="Keys" columns={columns} rows={keys.rows} rowKey={(row) => row.id} />
      </Listed>
      {isActive && <ServiceAccounts projectId={project_id} onCreate={setSecret} />}
      <Secret title="The key was created" label="API key" value={secret} onClose={() => setSecret(null)}>
        Programs read it from <code>OPENAI_API_KEY</code>.
      </Secret>
    </>
  );
}

/** Return the name of the owner of a key. */
function ownerOf({ owner }: Key): string {
  const name = owner.user?.name ?? owner.service_account?.name;
  return name === undefined ? "" : formatName(name);
}

function Revocation({ projectId, apiKey }: { projectId: string; apiKey: Key }) {
  async function revoke() {
    await take(adminApi.DELETE(`${KEYS}/{api_key_id}`, { params: { path: { project_id: projectId, api_key_id: apiKey.id } } }));
    await refresh(KEYS);
  }
  return (
    <ConfirmButton small label="Revoke" name={`Revoke ${apiKey.redacted_value}`} title={`Revoke ${apiKey.redacted_value}?`} action="Revoke the key" onConfirm={revoke}>
      <p>After two seconds no request with this key is accepted, and its jobs are cancelled. This cannot be undone.</p>
    </ConfirmButton>
  );
}

/** A form that is open: a new service account, or a new key of one. */
type OpenForm = { account: ServiceAccount | null } | null;

function ServiceAccounts({ projectId: project_id, onCreate }: { projectId: string; onCreate: (value: string) => void }) {
  const [form, setForm] = useState<OpenForm>(null);
  const accounts = usePages(ACCOUNTS, { path: { project_id }, query: { limit: 50 } }, { as: adminApi });
  const columns: readonly Column<ServiceAccount>[] = [
    { id: "name", header: "Service account", cell: (row) => <span className="break">{formatName(row.name)}</span>, sort: (row) => row.name },
    { id: "role", header: "Role", cell: (row) => row.role, sort: (row) => row.role },
    { id: "created", header: "Created", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, align: "end", wide: true },
    {
      id: "actions",
      header: "Actions",
      cell: (row) => (
        <span className="actions end">
          <Button className="copy" aria-label={`New key of ${formatName(row.name)}`} onClick={() => setForm({ account: row })}>
            New key
          </Button>
          <Deletion projectId={project_id} account={row} />
        </span>
      ),
      align: "end",
    },
  ];
  return (
    <Section title="Service accounts" actions={<Button onClick={() => setForm({ account: null })}>New service account</Button>}>
      <Listed
        what="the service accounts"
        query={accounts}
        empty={<Empty title="No service accounts">A service account owns the keys of a program: it is no person, and leaves with nobody.</Empty>}
      >
        <Table label="Service accounts" columns={columns} rows={accounts.rows} rowKey={(row) => row.id} />
      </Listed>
      {form !== null && <KeyForm projectId={project_id} account={form.account} onClose={() => setForm(null)} onCreate={onCreate} />}
    </Section>
  );
}

function Deletion({ projectId, account }: { projectId: string; account: ServiceAccount }) {
  const name = formatName(account.name);
  async function remove() {
    await take(adminApi.DELETE(`${ACCOUNTS}/{service_account_id}`, { params: { path: { project_id: projectId, service_account_id: account.id } } }));
    await refresh(ACCOUNTS, KEYS);
  }
  return (
    <ConfirmButton small label="Delete" name={`Delete ${name}`} title={`Delete ${name}?`} action="Delete the service account" onConfirm={remove}>
      <p>After two seconds no request with its keys is accepted, and their jobs are cancelled. This cannot be undone.</p>
    </ConfirmButton>
  );
}
