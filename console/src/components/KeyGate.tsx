import { useState } from "react";

import { ApiError, readError } from "@/api/client";
import { signIn, useSession } from "@/api/session";

import { Problem } from "./Failure";
import { Field, Input } from "./Field";
import { Form } from "./Form";
import { Snippet } from "./Snippet";

/** Ask for the key of a project. It is tried before it is kept. */
export function KeyGate() {
  const { refusal } = useSession();
  const [key, setKey] = useState("");

  async function submit() {
    await tryKey(key.trim());
    signIn(key.trim());
  }

  return (
    <main className="gate">
      <div className="card stack">
        <h1>Nightmill</h1>
        <p>The console uses the API with your project&apos;s key. The key stays in this tab until you close it.</p>
        {refusal !== null && (
          <Problem title="You are signed out">
            <p>{refusal}</p>
          </Problem>
        )}
        <Form action="Sign in" failure="The key was not accepted" onSubmit={submit}>
          <Field label="API key">
            <Input type="password" name="key" required placeholder="nm_…" value={key} onChange={(event) => setKey(event.target.value)} />
          </Field>
        </Form>
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
      </div>
    </main>
  );
}

/** Ask the API whether it accepts a key. Raises: ApiError where it does not. */
async function tryKey(key: string): Promise<void> {
  const answer = await fetch("/v1/jobs?limit=1", { headers: { Authorization: `Bearer ${key}` } }).catch((cause: unknown) => {
    throw new ApiError(0, "The server cannot be reached, or the key has characters that no key has.", null, null, null, { cause });
  });
  if (!answer.ok) throw await readError(answer);
}
