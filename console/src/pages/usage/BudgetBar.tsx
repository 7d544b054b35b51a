import { formatCents, type Budget } from "./budgets";

/** Render what is spent and what is reserved of a spend limit as a bar. */
export function BudgetBar({ budget }: { budget: Budget }) {
  const { name, threshold_amount: limit, spent_amount: spent, reserved_amount: reserved } = budget;
  if (limit === null) return <span className="muted">no limit</span>;
  const text = `${formatCents(spent)} spent and ${formatCents(reserved)} reserved of ${formatCents(limit)}`;
  const widthOf = (amount: number) => `${Math.min(amount / limit, 1) * 100}%`;
  return (
    <span className="progress">
      <span
        className="progress-bar"
        role="progressbar"
        aria-label={`Budget of ${name}`}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(Math.min((spent + reserved) / limit, 1) * 100)}
        aria-valuetext={text}
        title={text}
      >
        <span className="completed" style={{ width: widthOf(spent) }} />
        <span className="reserved" style={{ width: widthOf(reserved) }} />
      </span>
    </span>
  );
}
