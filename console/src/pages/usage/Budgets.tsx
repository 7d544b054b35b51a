import { useQuery } from "@tanstack/react-query";

import { adminApi } from "@/api/client";
import { getAsAdmin, usePages } from "@/api/get";
import { useSession } from "@/api/session";
import { AdminGate } from "@/components/AdminGate";
import { formatName } from "@/components/format";
import { Listed } from "@/components/Listed";
import { Loaded } from "@/components/Loaded";
import { Page, Section } from "@/components/Page";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";

import { BudgetBar } from "./BudgetBar";
import { BudgetPart } from "./BudgetPart";
import { formatCents, type Budget } from "./budgets";

/** Milliseconds between two readings; what is spent is no event. */
const REFRESH = 15_000;

const COLUMNS: readonly Column<Budget>[] = [
  { id: "name", header: "Project", cell: (row) => <span className="break">{formatName(row.name)}</span>, sort: (row) => row.name },
  { id: "spent", header: "Spent", cell: (row) => <span className="number">{formatCents(row.spent_amount)}</span>, sort: (row) => row.spent_amount, align: "end" },
  {
    id: "reserved",
    header: "Reserved",
    cell: (row) => <span className="number">{formatCents(row.reserved_amount)}</span>,
    sort: (row) => row.reserved_amount,
    align: "end",
    wide: true,
  },
  {
    id: "limit",
    header: "Limit",
    cell: (row) => row.threshold_amount !== null && <span className="number">{formatCents(row.threshold_amount)}</span>,
    sort: (row) => row.threshold_amount,
    align: "end",
    wide: true,
  },
  { id: "bar", header: "Budget", cell: (row) => <BudgetBar budget={row} /> },
  { id: "state", header: "State", cell: (row) => row.enforcement.status === "enforcing" && <State state="enforcing" />, wide: true },
];

/** Show what all projects together and each of them have spent and reserved this month, with limits and alerts. */
export default function Budgets() {
  const { adminKey } = useSession();
  const options = { enabled: adminKey !== null, refetchInterval: REFRESH };
  const budget = useQuery({ ...getAsAdmin("/v1/organization/budget", {}), ...options });
  return (
    <Page title="Budgets" description="What this month costs in UTC, what is reserved for work that runs, and where it stops.">
      <AdminGate error={budget.error}>
        <Loaded what="the budget" query={budget}>
          {(budget) => (
            <>
              <BudgetPart budget={budget} owner={null} />
              <Projects />
              {budget.unpriced_models.length > 0 && (
                <p className="muted section">Without a price, and so without a cost that counts: {budget.unpriced_models.join(", ")}.</p>
              )}
            </>
          )}
        </Loaded>
      </AdminGate>
    </Page>
  );
}

function Projects() {
  const budgets = usePages("/v1/organization/budgets", { query: { limit: 50 } }, { as: adminApi, refetchInterval: REFRESH });
  return (
    <Section title="Projects">
      <Listed what="the budgets" query={budgets} empty={<p className="muted">There is no project.</p>}>
        <Table
          label="Budgets of projects"
          columns={COLUMNS}
          rows={budgets.rows}
          rowKey={(row) => row.id}
          rowLink={(row) => ({ to: "/organization/$projectId", params: { projectId: row.id }, search: { tab: "budget" } })}
        />
      </Listed>
    </Section>
  );
}
