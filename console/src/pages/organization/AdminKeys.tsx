import { useState } from "react";

import { adminApi, take, type Schema } from "@/api/client";
import { refresh, usePages } from "@/api/get";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Field, Input } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { formatName } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Secret } from "@/components/Secret";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

import { KeyName, Scopes } from "./keys";
import { LastUse } from "./People";

type AdminKey = Schema<"AdminKeyObject">;

const PATH = "/v1/organization/admin_api_keys";

const COLUMNS: readonly Column<AdminKey>[] = [
  { id: "key", header: "Key", cell: (row) => <KeyName name={row.name} redacted={row.redacted_value} />, sort: (row) => row.name },
  { id: "owner", header: "Owner", cell: (row) => <span className="break">{formatName(row.owner.name ?? "operator")}</span>, sort: (row) => row.owner.name, wide: true },
  { id: "scopes", header: "Scopes", cell: (row) => <Scopes names={row.scopes} />, wide: true },
  { id: "used", header: "Last used", cell: (row) => <LastUse at={row.last_used_at} />, sort: (row) => row.last_used_at, align: "end" },
  { id: "expires", header: "Expires", cell: (row) => (row.expires_at === null ? "never" : <Time at={row.expires_at} />), sort: (row) => row.expires_at, align: "end", wide: true },
  { id: "delete", header: "Delete", cell: (row) => <Deletion adminKey={row} />, align: "end" },
];

/** List the admin keys, create one, and delete those that are not needed. */
export function AdminKeys() {
  const [isOpen, setOpen] = useState(false);
  const [secret, setSecret] = useState<string | null>(null);
  const keys = usePages(PATH, { query: { limit: 50 } }, { as: adminApi });
  return (
    <div className="stack">
      <div className="actions">
        <Button onClick={() => setOpen(true)}>New admin key</Button>
      </div>
      <Listed what="the admin keys" query={keys} empty={<p className="muted">There is no admin key.</p>}>
        <Table label="Admin keys" columns={COLUMNS} rows={keys.rows} rowKey={(row) => row.id} />
      </Listed>
      {isOpen && <NewAdminKey onClose={() => setOpen(false)} onCreate={setSecret} />}
      <Secret title="The admin key was created" label="Admin key" value={secret} onClose={() => setSecret(null)}>
        Programs read it from <code>OPENAI_ADMIN_KEY</code>. It has the scopes of the key that you use here.
      </Secret>
    </div>
  );
}

function NewAdminKey({ onClose, onCreate }: { onClose: () => void; onCreate: (value: string) => void }) {
  const [name, setName] = useState("");
  async function create() {
    onCreate((await take(adminApi.POST(PATH, { body: { name } }))).value);
    await refresh(PATH);
  }
  return (
    <FormDialog title="New admin key" action="Create the key" failure="The key was not created" onSubmit={create} onClose={onClose}>
      <Field label="Name" hint="What uses the key." param="name">
        <Input required maxLength={255} value={name} onChange={(event) => setName(event.target.value)} />
      </Field>
    </FormDialog>
  );
}

function Deletion({ adminKey }: { adminKey: AdminKey }) {
  async function remove() {
    await take(adminApi.DELETE(`${PATH}/{key_id}`, { params: { path: { key_id: adminKey.id } } }));
    await refresh(PATH);
  }
  return (
    <ConfirmButton small label="Delete" name={`Delete ${adminKey.redacted_value}`} title={`Delete ${adminKey.redacted_value}?`} action="Delete the key" onConfirm={remove}>
      <p>After two seconds no request with this key is accepted. This cannot be undone.</p>
    </ConfirmButton>
  );
}
