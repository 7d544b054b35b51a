import { useState, type FormEvent, type ReactNode } from "react";

import { ApiError } from "@/api/client";
import { setAdminKey, useSession } from "@/api/session";

import { Button } from "./Button";
import { Failure } from "./Failure";
import { Field, Input } from "./Field";
import { Card } from "./Page";
import { Snippet } from "./Snippet";

interface AdminGateProps {
  /** The error of the page's query; a refused key leads back to the question for one. */
  error: Error | null;
  children: ReactNode;
}

/** Render what concerns all projects; without an admin key that the server accepts, ask for one. */
export function AdminGate({ error, children }: AdminGateProps) {
  const { adminKey } = useSession();
  const isRefused = error instanceof ApiError && (error.status === 401 || error.status === 403);
  if (adminKey !== null && !isRefused) return <>{children}</>;
  return <Question error={adminKey === null ? null : error} />;
}

function Question({ error }: { error: Error | null }) {
  const [key, setKey] = useState("");
  function submit(event: FormEvent) {
    event.preventDefault();
    setAdminKey(key.trim());
  }
  return (
    <Card className="narrow-card">
      <form className="stack" onSubmit={submit}>
        <h2>This page needs an admin key</h2>
        <p>
          It shows what concerns every project of the deployment, so the key of a project does not open it. Your
          project&apos;s key stays in use for the other pages.
        </p>
        {error && <Failure title="The key was not accepted" error={error} />}
        <Field label="Admin key" hint="It stays in this tab until you close it or sign out.">
          <Input type="password" required placeholder="nm_…" value={key} onChange={(event) => setKey(event.target.value)} />
        </Field>
        <div className="actions">
          <Button tone="primary" type="submit">
            Open
          </Button>
        </div>
        <p className="muted">On the server&apos;s host, this makes such a key:</p>
        <Snippet label="Command" text="nightmill keys create --admin" />
      </form>
    </Card>
  );
}
