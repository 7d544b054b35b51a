import { words } from "./format";

type Tone = "neutral" | "active" | "good" | "warning" | "bad";

const TONES: Readonly<Record<string, Tone>> = {
  running: "active",
  in_progress: "active",
  finishing: "active",
  finalizing: "active",
  loading: "active",
  validating: "active",
  validating_files: "active",
  syncing: "active",
  succeeded: "good",
  completed: "good",
  processed: "good",
  delivered: "good",
  live: "good",
  ready: "good",
  active: "good",
  enabled: "good",
  passed: "good",
  pass: "good",
  same: "good",
  promoted: "good",
  no_drift: "good",
  paused: "warning",
  draining: "warning",
  expiring: "warning",
  cancelling: "warning",
  expired: "warning",
  no_worker: "warning",
  reached: "warning",
  disabled: "warning",
  different: "warning",
  inconclusive: "warning",
  failed: "bad",
  fail: "bad",
  error: "bad",
  errored: "bad",
  quarantined: "bad",
  lost: "bad",
  revoked: "bad",
  refused: "bad",
  drift: "bad",
  enforcing: "bad",
};

/** Render a state as a badge: its words, and a colour for those known. */
export function State({ state, title }: { state: string; title?: string }) {
  return (
    <span className={`state ${TONES[state] ?? "neutral"}`} title={title}>
      {words(state)}
    </span>
  );
}
