import { formatNumber, formatShare } from "@/components/format";

import { passShare } from "./evals";

/** Render how many items passed, failed and had no result, as text. */
export function Counts({ counts }: { counts: { passed: number; failed: number; errored: number } }) {
  const share = passShare(counts);
  if (share === null) return <span className="muted">no item yet</span>;
  return (
    <span className="number">
      {formatShare(share)} pass <span className="muted">({formatNumber(counts.passed)} passed, {formatNumber(counts.failed)} failed, {formatNumber(counts.errored)} errored)</span>
    </span>
  );
}
