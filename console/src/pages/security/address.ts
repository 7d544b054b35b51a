import { readText, readTime } from "@/components/address";

/** The filters of the audit log in the address. Times are in seconds of Unix. */
export interface AuditSearch {
  target?: string;
  actor?: string;
  type?: string;
  since?: number;
  until?: number;
}

/** Read the filters of the audit log from the address, where anything may stand. */
export function auditSearch(given: Record<string, unknown>): AuditSearch {
  return {
    target: readText(given.target),
    actor: readText(given.actor),
    type: readText(given.type),
    since: readTime(given.since),
    until: readTime(given.until),
  };
}
