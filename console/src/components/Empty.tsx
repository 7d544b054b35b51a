import type { ReactNode } from "react";

import { Snippet } from "./Snippet";

interface EmptyProps {
  /** What is not there: "No jobs yet". */
  title: string;
  /** What to do about it. */
  children?: ReactNode;
  /** The command that does it. */
  command?: string;
  /** The lines of the SDK for Python that do it. */
  sdk?: string;
  /** A link or button that does it here. */
  action?: ReactNode;
}

/** Render what an empty page says: what is not there, and how it gets there. */
export function Empty({ title, children, command, sdk, action }: EmptyProps) {
  return (
    <div className="empty">
      <h2>{title}</h2>
      {children && <p>{children}</p>}
      {action && <div className="actions">{action}</div>}
      {command && <Snippet label="Command" text={command} />}
      {sdk && <Snippet label="Python" text={sdk} />}
    </div>
  );
}
