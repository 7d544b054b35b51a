import { formatNumber, formatShare } from "./format";

interface ProgressProps {
  /** What progresses, for screen readers. */
  label: string;
  total: number;
  completed: number;
  failed?: number;
  /** Write the numbers beside the bar. */
  withNumbers?: boolean;
}

/** Render a bar of what is done: completed in one colour, failed in another. */
export function Progress({ label, total, completed, failed = 0, withNumbers = false }: ProgressProps) {
  const done = completed + failed;
  const share = total > 0 ? Math.min(done / total, 1) : 0;
  const failedText = failed > 0 ? `, ${formatNumber(failed)} failed` : "";
  const text = total > 0 ? `${formatNumber(done)} of ${formatNumber(total)}${failedText}` : "not known yet";
  return (
    <span className="progress">
      <span
        className="progress-bar"
        role="progressbar"
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(share * 100)}
        aria-valuetext={text}
        title={text}
      >
        <span className="completed" style={{ width: total > 0 ? `${(completed / total) * 100}%` : 0 }} />
        <span className="failed" style={{ width: total > 0 ? `${(failed / total) * 100}%` : 0 }} />
      </span>
      {withNumbers && (
        <span className="number muted">
          {text}
          {total > 0 && ` (${formatShare(share)})`}
        </span>
      )}
    </span>
  );
}
