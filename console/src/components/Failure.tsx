import type { ReactNode } from "react";

import { ApiError } from "@/api/client";

import { Button } from "./Button";

/** Return what an error means and what to do, for those that every page may meet. */
function advice(error: unknown): string {
  if (!(error instanceof ApiError)) return "This is a mistake of the console. Reload the page.";
  if (error.status === 0) return "Check that the server runs (nightmill up) and that your network is there. The console asks again by itself.";
  if (error.status === 401) return "Sign in with another key.";
  if (error.status === 403) return "Your key may not do this.";
  if (error.status === 404) return "It may have been deleted, or belong to another project than your key.";
  if (error.status === 429) return "Wait a little, then try again.";
  if (error.status >= 500) return "The server's log has the reason. Try again.";
  return "";
}

/** Return the words of an error. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Render what is wrong, in words. */
export function Problem({ title, children }: { title: string; children: ReactNode }) {
  return (
    <div className="failure" role="alert">
      <strong>{title}</strong>
      {children}
    </div>
  );
}

interface FailureProps {
  error: unknown;
  /** What was tried: "The jobs could not be listed". */
  title?: string;
  onRetry?: () => void;
}

/** Render an error in words: what happened, what to do, and how to find it in the server's log. */
export function Failure({ error, title = "This did not work", onRetry }: FailureProps) {
  const api = error instanceof ApiError ? error : null;
  const facts = [api?.code && `code ${api.code}`, api?.param && `field ${api.param}`, api?.requestId && `request ${api.requestId}`];
  return (
    <Problem title={title}>
      <p>{messageOf(error)}</p>
      {advice(error) && <p className="muted">{advice(error)}</p>}
      {facts.some(Boolean) && <p className="muted small">{facts.filter(Boolean).join(" · ")}</p>}
      {onRetry && <Button onClick={onRetry}>Try again</Button>}
    </Problem>
  );
}
