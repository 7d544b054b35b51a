import { formatName } from "@/components/format";

import type { JobObject } from "./life";

/** Render the name of a job with its id small below it; without a name the id alone. */
export function JobName({ job: { id, name } }: { job: Pick<JobObject, "id" | "name"> }) {
  return (
    <span className="job-name">
      {name !== null && <span className="break">{formatName(name)}</span>}
      <code className={name === null ? "" : "small muted"}>{id}</code>
    </span>
  );
}
