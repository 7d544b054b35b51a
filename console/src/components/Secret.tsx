import type { ReactNode } from "react";

import { Button } from "./Button";
import { Dialog } from "./Dialog";
import { Snippet } from "./Snippet";

interface SecretProps {
  title: string;
  /** What the secret is: "Signing secret". */
  label: string;
  /** The secret; the dialog is closed without one. */
  value: string | null;
  onClose: () => void;
  /** What the secret is for. */
  children: ReactNode;
}

/** Show a secret that the server shows only once. */
export function Secret({ title, label, value, onClose, children }: SecretProps) {
  return (
    <Dialog title={title} open={value !== null} onClose={onClose}>
      <div className="stack">
        <p>{children}</p>
        <Snippet label={label} text={value ?? ""} />
        <p className="muted">It is shown only now. Copy it to where you keep secrets before you go on.</p>
        <div className="actions end">
          <Button tone="primary" onClick={onClose}>
            I have copied it
          </Button>
        </div>
      </div>
    </Dialog>
  );
}
