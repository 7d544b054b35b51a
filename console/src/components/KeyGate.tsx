import { useState } from "react";

import { readProject } from "@/api/project";
import { signIn, useSession } from "@/api/session";

import { Problem } from "./Failure";
import { Field, Input } from "./Field";
import { Form } from "./Form";
import { Snippet } from "./Snippet";

/** Ask for the key of a project, where the tab has none. */
export function KeyGate() {
  const { refusal } = useSession();
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
        <KeyForm />
        <p>
          <a href="/login">Log in with your account</a>, if the operator has set up an identity provider.
        </p>
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

/** Ask for a key. It is tried before it is kept. */
export function KeyForm({ onDone }: { onDone?: () => void }) {
  const [key, setKey] = useState("");

  async function submit() {
    await readProject(key.trim());
    signIn(key.trim());
    onDone?.();
  }

  return (
    <Form action="Sign in" failure="The key was not accepted" onSubmit={submit}>
      <Field label="API key">
        <Input type="password" name="key" required placeholder="nm_…" value={key} onChange={(event) => setKey(event.target.value)} />
      </Field>
    </Form>
  );
}
