import { useEffect, useState } from "react";

import { Button } from "./Button";

/** Render a button that copies a text, and says so for two seconds. */
export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 2_000);
    return () => clearTimeout(timer);
  }, [copied]);
  return (
    <Button tone="plain" className="copy" onClick={() => void navigator.clipboard.writeText(text).then(() => setCopied(true))}>
      <span aria-live="polite">{copied ? "Copied" : label}</span>
    </Button>
  );
}

/** Render code or output as plain text, with a button that copies it. */
export function Snippet({ text, label }: { text: string; label?: string }) {
  return (
    <figure className="snippet">
      <figcaption>
        <span>{label}</span>
        <Copy text={text} />
      </figcaption>
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex -- a wide text is scrolled by keyboard */}
      <pre tabIndex={0} aria-label={label ?? "Code"} role="region">
        {text}
      </pre>
    </figure>
  );
}

/** Render an identifier in monospace with a button that copies it. */
export function Id({ id }: { id: string }) {
  return (
    <span className="id">
      <code>{id}</code>
      <Copy text={id} label="Copy" />
    </span>
  );
}
