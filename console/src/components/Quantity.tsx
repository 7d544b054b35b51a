import { formatBytes, formatCompact, formatCount, formatDuration, formatNumber } from "./format";

/** Render a number of things with its noun; the exact number shows on hover where it is shortened. */
export function Quantity({ value, unit, compact = false }: { value: number; unit?: string; compact?: boolean }) {
  const write = (format: (value: number) => string) => (unit === undefined ? format(value) : formatCount(value, unit, undefined, format));
  return (
    <span className="number" title={compact ? write(formatNumber) : undefined}>
      {write(compact ? formatCompact : formatNumber)}
    </span>
  );
}

/** Render a size; the exact bytes show on hover. */
export function Bytes({ value }: { value: number }) {
  return (
    <span className="number" title={formatCount(value, "byte")}>
      {formatBytes(value)}
    </span>
  );
}

/** Render a span of seconds. */
export function Duration({ seconds }: { seconds: number }) {
  return (
    <span className="number" title={`${seconds} s`}>
      {formatDuration(seconds)}
    </span>
  );
}

/** Render one number large, with its name above and a remark below. */
export function Figure({ name, value, remark }: { name: string; value: React.ReactNode; remark?: React.ReactNode }) {
  return (
    <div className="figure">
      <span className="figure-name">{name}</span>
      <span className="figure-value">{value}</span>
      {remark && <span className="figure-remark">{remark}</span>}
    </div>
  );
}
