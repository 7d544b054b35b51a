import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { api, take, type Schema } from "@/api/client";
import { get, refresh, usePages } from "@/api/get";
import { useSession } from "@/api/session";
import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Empty } from "@/components/Empty";
import { Failure, Problem } from "@/components/Failure";
import { Listed } from "@/components/Listed";
import { Page } from "@/components/Page";
import { Secret } from "@/components/Secret";
import { Snippet } from "@/components/Snippet";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";
import { Time } from "@/components/Time";

type Key = Schema<"ProjectApiKey">;

const SDK = `key = client.post("/api_keys", cast_to=object)
print(key["value"])  # shown once`;

const PATHS = ["/v1/api_keys", "/v1/api_keys/{api_key_id}"] as const;

/** A key that was revoked, and the live keys that it had created. */
interface Revoked {
  readonly key: Key;
  readonly created: readonly string[];
}

/** List the keys of the project, create one, and revoke those that are not needed. Only some keys may manage keys. */
export default function Keys() {
  // A key is nm_<id>_<secret>_<checksum>.
  const own = useSession().key?.split("_")[1] ?? "";
  const [secret, setSecret] = useState<string | null>(null);
  const [revoked, setRevoked] = useState<Revoked | null>(null);
  const used = useQuery(get("/v1/api_keys/{api_key_id}", { path: { api_key_id: own } }));
  const manages = used.data?.manages_keys ?? false;
  const keys = usePages("/v1/api_keys", {});
  const create = useMutation({
    mutationFn: () => take(api.POST("/v1/api_keys")),
    onSuccess: (made) => {
      setSecret(made.value);
      return refresh("/v1/api_keys");
    },
  });
  const revoke = async (key: Key, cascade: boolean) => {
    const params = { path: { api_key_id: key.id }, query: { cascade } };
    const { created_keys: created } = await take(api.DELETE("/v1/api_keys/{api_key_id}", { params }));
    setRevoked(cascade || created.length === 0 ? null : { key, created });
    await refresh(...PATHS);
  };
  const columns: readonly Column<Key>[] = [
    { id: "key", header: "Key", cell: (row) => <code>{row.redacted_value}</code>, sort: (row) => row.id },
    {
      id: "state",
      header: "State",
      cell: (row) => (
        <span className="row">
          <State state={row.revoked_at === null ? "live" : "revoked"} />
          {row.manages_keys && <span className="muted small">manages keys</span>}
          {row.id === own && <span className="muted small">used here</span>}
        </span>
      ),
      sort: (row) => row.revoked_at ?? 0,
    },
    { id: "creator", header: "Created by", cell: (row) => (row.created_by === null ? "operator" : <code>{row.created_by}</code>), sort: (row) => row.created_by, wide: true },
    { id: "created", header: "Created", cell: (row) => <Time at={row.created_at} />, sort: (row) => row.created_at, wide: true, align: "end" },
    { id: "revoked", header: "Revoked", cell: (row) => row.revoked_at !== null && <Time at={row.revoked_at} />, sort: (row) => row.revoked_at, wide: true, align: "end" },
    {
      id: "revoke",
      header: "Revoke",
      cell: (row) =>
        row.revoked_at === null &&
        (manages || row.id === own) && (
          <ConfirmButton
            small
            label="Revoke"
            name={`Revoke ${row.redacted_value}`}
            title={`Revoke ${row.redacted_value}?`}
            action="Revoke the key"
            onConfirm={() => revoke(row, false)}
          >
            <p>After five seconds no request with this key is accepted. This cannot be undone.</p>
            {row.id === own && <p className="bad">It is the key that you are signed in with: you will be signed out.</p>}
          </ConfirmButton>
        ),
      align: "end",
    },
  ];
  return (
    <Page
      title="Keys"
      description="A key opens what its scopes permit in this project, and nothing of others; some keys manage keys. The keys themselves are stored nowhere."
      actions={
        manages && (
          <Button tone="primary" busy={create.isPending} onClick={() => create.mutate()}>
            New key
          </Button>
        )
      }
    >
      <div className="stack">
        {used.data?.manages_keys === false && (
          <div className="card stack">
            <p>
              Your key does not manage keys: it shows them, and may revoke itself alone. On the host of the deployment this makes a key
              that creates and revokes them:
            </p>
            <Snippet label="Command" text="nightmill keys create --project NAME --manage" />
          </div>
        )}
        {revoked !== null && (
          <Problem title={`${revoked.key.redacted_value} is revoked; keys that it created stay live`}>
            <p>
              {revoked.created.map((id) => (
                <code key={id}>{id} </code>
              ))}
            </p>
            <ConfirmButton
              label="Revoke them too"
              title="Revoke the keys that it created?"
              action="Revoke the keys"
              onConfirm={() => revoke(revoked.key, true)}
            >
              <p>After five seconds no request with these keys is accepted. This cannot be undone.</p>
            </ConfirmButton>
          </Problem>
        )}
        {create.isError && <Failure title="The key could not be created" error={create.error} />}
        <Listed
          what="the keys"
          query={keys}
          empty={
            <Empty title="No keys" command="nightmill keys create --mine" sdk={SDK}>
              A program gets a key of its own, so that you can revoke it alone.
            </Empty>
          }
        >
          <Table label="Keys" columns={columns} rows={keys.rows} rowKey={(row) => row.id} />
        </Listed>
      </div>
      <Secret title="The key was created" label="API key" value={secret} onClose={() => setSecret(null)}>
        Programs read it from <code>OPENAI_API_KEY</code>.
      </Secret>
    </Page>
  );
}
