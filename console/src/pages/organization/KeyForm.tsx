import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { adminApi, take, type Schema } from "@/api/client";
import { getAsAdmin, refresh } from "@/api/get";
import { Field, Input, Select } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { formatName } from "@/components/format";

const ACCOUNTS = "/v1/organization/projects/{project_id}/service_accounts";
const DAY = 86_400;
const LIFETIMES = [
  ["", "never"],
  [String(30 * DAY), "in 30 days"],
  [String(90 * DAY), "in 90 days"],
  [String(365 * DAY), "in a year"],
] as const;

interface KeyFormProps {
  projectId: string;
  /** The owner of the new key; null for a new service account, which gets its first key. */
  account: Schema<"ServiceAccountObject"> | null;
  onClose: () => void;
  /** Show the key, which the server shows once. */
  onCreate: (value: string) => void;
}

/** Ask for a new key of a service account, or for a new service account with its first key. */
export function KeyForm({ projectId: project_id, account, onClose, onCreate }: KeyFormProps) {
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState<readonly string[]>([]);
  const [lifetime, setLifetime] = useState("");
  const expires_in_seconds = lifetime === "" ? null : Number(lifetime);

  async function create() {
    if (account === null) {
      const made = await take(adminApi.POST(ACCOUNTS, { params: { path: { project_id } }, body: { name, expires_in_seconds, create_service_account_only: false } }));
      onCreate(made.api_key!.value);
    } else {
      const path = { project_id, service_account_id: account.id };
      const body = { name, scopes: [...scopes], expires_in_seconds };
      onCreate((await take(adminApi.POST(`${ACCOUNTS}/{service_account_id}/api_keys`, { params: { path }, body }))).value);
    }
    await refresh(ACCOUNTS, "/v1/organization/projects/{project_id}/api_keys");
  }

  const texts =
    account === null
      ? { title: "New service account", action: "Create the account", failure: "The service account was not created" }
      : { title: `New key of ${formatName(account.name)}`, action: "Create the key", failure: "The key was not created" };
  return (
    <FormDialog {...texts} onSubmit={create} onClose={onClose}>
      <Field label="Name" hint={account === null ? "It is a member of the project, and gets its first key." : "What uses the key."} param="name">
        <Input required maxLength={255} value={name} onChange={(event) => setName(event.target.value)} />
      </Field>
      <Field label="The key expires" param="expires_in_seconds">
        <Select value={lifetime} options={LIFETIMES} onChange={setLifetime} />
      </Field>
      {account !== null && <ScopeChoice projectId={project_id} role={account.role} chosen={scopes} onChange={setScopes} />}
    </FormDialog>
  );
}

interface ScopeChoiceProps {
  projectId: string;
  role: string;
  chosen: readonly string[];
  onChange: (scopes: readonly string[]) => void;
}

/** Choose scopes among the permissions of a role of the project. */
function ScopeChoice({ projectId: project_id, role, chosen, onChange }: ScopeChoiceProps) {
  const path = { project_id, role_id: `role-project-${role}` };
  const { data } = useQuery({ ...getAsAdmin("/v1/projects/{project_id}/roles/{role_id}", { path }), enabled: role !== "none" });
  return (
    <fieldset className="choices">
      <legend>Scopes (none: all of the account)</legend>
      {data?.permissions.map((name) => (
        <label key={name}>
          <input
            type="checkbox"
            checked={chosen.includes(name)}
            onChange={(event) => onChange(event.target.checked ? [...chosen, name] : chosen.filter((each) => each !== name))}
          />
          <code>{name}</code>
        </label>
      ))}
    </fieldset>
  );
}
