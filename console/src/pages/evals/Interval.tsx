import "./evals.css";

/** The class of a verdict: an inconclusive one has no color. */
export const TONES = { better: "good", worse: "bad", inconclusive: "" } as const;

/** Return a difference with its sign. */
export function signed(value: number): string {
  return `${value > 0 ? "+" : value < 0 ? "-" : "±"}${Math.abs(value).toFixed(3)}`;
}

interface IntervalProps {
  row: { low: number; high: number; difference: number };
  /** The class of the verdict: "good", "bad" or none. */
  tone: string;
  /** Where the axis ends. */
  scale: number;
}

/** Draw the interval of a difference around zero, with its bounds as text. */
export function Interval({ row: { low, high, difference }, tone, scale }: IntervalProps) {
  const at = (value: number) => `${50 + (value / scale) * 48}%`;
  return (
    <div className="interval">
      <div className={`interval-axis ${tone}`} aria-hidden>
        <span className="interval-range" style={{ left: at(low), width: `${((high - low) / scale) * 48}%` }} />
        <span className="interval-mean" style={{ left: at(difference) }} />
      </div>
      <span className="number small">
        {signed(low)} to {signed(high)}
      </span>
    </div>
  );
}
