import { request } from "@/api/client";

import type { FileObject } from "./uploads";

/** Bytes of a file that is read as a report: a browser holds all of it. */
const MAX_BYTES = 20_000_000;

/** What a migration made of an object. */
export interface ReportRow {
  readonly kind: string;
  readonly origin_id: string;
  /** The id of the object here; null where there is none. */
  readonly id: string | null;
  /** `same`, `different`, `lost`, `failed`, or `present` for what was there before. */
  readonly outcome: string;
  readonly reason: string;
}

/** The report that a migration stores as a file. */
export interface Report {
  readonly object: "migration.report";
  readonly created_at: number;
  readonly source: string;
  /** False for a dry run. */
  readonly applied: boolean;
  readonly counts: Readonly<Record<string, number>>;
  readonly rows: readonly ReportRow[];
}

/** Return whether a file has the name of a report, and can be read here. */
export function mayBeReport({ filename, bytes }: FileObject): boolean {
  return /^migration-.*\.json$/.test(filename) && bytes > 0 && bytes <= MAX_BYTES;
}

/** Return the report that a text holds; null where it holds something else. */
export function reportOf(text: string): Report | null {
  try {
    const report = JSON.parse(text) as Report | null;
    return report?.object === "migration.report" && Array.isArray(report.rows) ? report : null;
  } catch {
    return null;
  }
}

/** Read a file as a report; null where it is none. Raises: ApiError. */
export async function readReport(fileId: string, signal: AbortSignal): Promise<Report | null> {
  const answer = await request(`/v1/files/${encodeURIComponent(fileId)}/content`, { signal });
  return reportOf(await answer.text());
}
