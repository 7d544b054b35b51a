import { formatCount, formatName } from "@/components/format";

import { Permissions } from "./Roles";

/** Render a key by its name, with what is shown of its value below. */
export function KeyName({ name, redacted }: { name: string | null; redacted: string }) {
  return (
    <span className="break">
      {name !== null && formatName(name)}
      <div className="muted small">
        <code>{redacted}</code>
      </div>
    </span>
  );
}

/** Render the scopes of a key; without any it may do what its owner may. */
export function Scopes({ names }: { names: readonly string[] }) {
  if (names.length === 0) return <span className="muted">all of its owner</span>;
  if (names.length <= 2) return <Permissions names={names} />;
  return (
    <details>
      <summary>{formatCount(names.length, "scope")}</summary>
      <Permissions names={names} />
    </details>
  );
}
