import { useState, type FormEvent } from "react";

import { ApiError, readError } from "@/api/client";
import { signIn, useSession } from "@/api/session";

import { Button } from "./Button";
import { Failure } from "./Failure";
import { Field, Input } from "./Field";
import { Snippet } from "./Snippet";

/** Ask for the key of a project. It is tried before it is kept. */
export function KeyGate() {
  const { refusal } = useSession();
  const [key, setKey] = useState("");
  const [error, setError] = useState<ApiError | null>(null);
  const [isBusy, setBusy] = useState(false);

  async function submit(event: FormEvent) {
    event.preventDefault();
    setBusy(true);
    const refused = await tryKey(key.trim());
    setBusy(false);
    if (refused === null) signIn(key.trim());
    else setError(refused);
  }

  return (
    <main className="gate">
      <form className="card stack" onSubmit={(event) => void submit(event)}>
        <h1>Nightmill</h1>
        <p>The console uses the API with your project&apos;s key. The key stays in this tab until you close it.</p>
        {refusal !== null && error === null && (
          <div className="failure" role="alert">
            <strong>You are signed out</strong>
            <p>{refusal}</p>
          </div>
        )}
        {error && <Failure title="The key was not accepted" error={error} />}
        <Field label="API key">
          <Input type="password" name="key" required placeholder="nm_…" value={key} onChange={(event) => setKey(event.target.value)} />
        </Field>
        <Button tone="primary" type="submit" busy={isBusy}>
          Sign in
        </Button>
        <details>
          <summary>Where is my key?</summary>
          <div className="stack">
            <p>
              On the host of a deployment that <code>nightmill up</code> started, this prints a link which signs you in. Its key
              stands in <code>run.json</code> in the data folder.
            </p>
            <Snippet label="Command" text="nightmill console" />
            <p>This makes another key of a project:</p>
            <Snippet label="Command" text="nightmill keys create --project default" />
          </div>
        </details>
      </form>
    </main>
  );
}

/** Ask the API whether it accepts a key; return the error where it does not. */
async function tryKey(key: string): Promise<ApiError | null> {
  try {
    const answer = await fetch("/v1/jobs?limit=1", { headers: { Authorization: `Bearer ${key}` } });
    return answer.ok ? null : await readError(answer);
  } catch (error) {
    return new ApiError(0, "The server cannot be reached, or the key has characters that no key has.", null, null, null, { cause: error });
  }
}
