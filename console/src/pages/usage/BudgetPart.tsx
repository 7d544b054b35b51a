import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { Button } from "@/components/Button";
import { ConfirmButton } from "@/components/Confirm";
import { Field, Input } from "@/components/Field";
import { FormDialog } from "@/components/Form";
import { Loaded } from "@/components/Loaded";
import { Card, Section } from "@/components/Page";
import { Figure } from "@/components/Quantity";
import { State } from "@/components/State";
import { Table, type Column } from "@/components/Table";

import { BudgetBar } from "./BudgetBar";
import { alertsOf, centsOf, createAlert, deleteAlert, formatCents, removeLimit, setLimit, type Budget, type Owner, type SpendAlert } from "./budgets";

interface BudgetPartProps {
  budget: Budget;
  owner: Owner;
  /** Show the budget without the buttons that change it. */
  isReadOnly?: boolean;
}

/** Show a budget of this month with its alerts, and change its spend limit and its alerts. */
export function BudgetPart({ budget, owner, isReadOnly = false }: BudgetPartProps) {
  const { threshold_amount: limit, spent_amount: spent, reserved_amount: reserved } = budget;
  return (
    <>
      <div className="stack">
        <div className="grid figures">
          <Card>
            <Figure name="Spent this month" value={formatCents(spent)} remark="in UTC" />
          </Card>
          <Card>
            <Figure name="Reserved" value={formatCents(reserved)} remark="for what runs, at most" />
          </Card>
          <Card>
            <Figure name="Spend limit" value={limit === null ? "none" : formatCents(limit)} remark={limit !== null && "a month"} />
          </Card>
          {limit !== null && (
            <Card>
              <Figure
                name="Left"
                value={<span className={budget.enforcement.status === "enforcing" ? "bad" : undefined}>{formatCents(Math.max(limit - spent - reserved, 0))}</span>}
                remark={budget.enforcement.status === "enforcing" && "clients get 429, jobs wait"}
              />
            </Card>
          )}
        </div>
        {limit !== null && <BudgetBar budget={budget} />}
        {!isReadOnly && <LimitActions budget={budget} owner={owner} />}
      </div>
      <Alerts budget={budget} owner={owner} isReadOnly={isReadOnly} />
    </>
  );
}

function LimitActions({ budget: { threshold_amount: limit }, owner }: { budget: Budget; owner: Owner }) {
  const [isOpen, setOpen] = useState(false);
  const [dollars, setDollars] = useState("");
  const verb = limit === null ? "Set" : "Change";

  function open() {
    setDollars(limit === null ? "" : String(limit / 100));
    setOpen(true);
  }

  return (
    <div className="actions">
      <Button onClick={open}>{verb} the spend limit</Button>
      {limit !== null && (
        <ConfirmButton label="Remove the limit" title="Remove the spend limit?" action="Remove it" onConfirm={() => removeLimit(owner)}>
          <p>Jobs that wait for it go on, and nothing is refused any more for what it costs.</p>
        </ConfirmButton>
      )}
      {isOpen && (
        <FormDialog
          title={`${verb} the spend limit`}
          action={`${verb} it`}
          failure="The spend limit was not set"
          onSubmit={() => setLimit(owner, centsOf(dollars))}
          onClose={() => setOpen(false)}
        >
          <Dollars label="US dollars a month" hint="At the limit clients get 429, and jobs wait until it is raised or the month ends." value={dollars} onChange={setDollars} />
        </FormDialog>
      )}
    </div>
  );
}

function Alerts({ budget, owner, isReadOnly }: Required<BudgetPartProps>) {
  const [isOpen, setOpen] = useState(false);
  const alerts = useQuery(alertsOf(owner));
  const columns: readonly Column<SpendAlert>[] = [
    { id: "threshold", header: "Threshold", cell: (row) => formatCents(row.threshold_amount), sort: (row) => row.threshold_amount },
    { id: "state", header: "This month", cell: (row) => <State state={budget.spent_amount >= row.threshold_amount ? "reached" : "not_reached"} /> },
    { id: "recipients", header: "Recipients", cell: (row) => <span className="break">{row.notification_channel.recipients.join(", ")}</span>, wide: true },
    {
      id: "delete",
      header: "Delete",
      cell: (row) =>
        !isReadOnly && (
          <ConfirmButton
            small
            label="Delete"
            name={`Delete the alert at ${formatCents(row.threshold_amount)}`}
            title="Delete this alert?"
            action="Delete the alert"
            onConfirm={() => deleteAlert(owner, row.id)}
          >
            <p>Nothing tells any more that a month costs {formatCents(row.threshold_amount)}.</p>
          </ConfirmButton>
        ),
      align: "end",
    },
  ];
  return (
    <Section title="Spend alerts" actions={!isReadOnly && <Button onClick={() => setOpen(true)}>New alert</Button>}>
      <Loaded what="the alerts" query={alerts}>
        {(rows) =>
          rows.length === 0 ? (
            <p className="muted">None. An alert fires once a month: it calls webhooks and stops no work.</p>
          ) : (
            <Table label="Spend alerts" columns={columns} rows={rows} rowKey={(row) => row.id} />
          )
        }
      </Loaded>
      {isOpen && <NewAlert owner={owner} onClose={() => setOpen(false)} />}
    </Section>
  );
}

function NewAlert({ owner, onClose }: { owner: Owner; onClose: () => void }) {
  const [dollars, setDollars] = useState("");
  const [recipients, setRecipients] = useState("");
  const create = () => createAlert(owner, centsOf(dollars), recipients.split(/[\s,;]+/).filter(Boolean));
  return (
    <FormDialog title="New spend alert" action="Create the alert" failure="The alert was not created" onSubmit={create} onClose={onClose}>
      <Dollars label="US dollars a month" hint="It fires when the usage of a month has cost as much." value={dollars} onChange={setDollars} />
      <Field label="Recipients" hint="Addresses for the receiver of the webhook: the server itself sends no mail." param="notification_channel.recipients">
        <Input required placeholder="ops@example.com" value={recipients} onChange={(event) => setRecipients(event.target.value)} />
      </Field>
    </FormDialog>
  );
}

interface DollarsProps {
  label: string;
  hint: string;
  value: string;
  onChange: (dollars: string) => void;
}

function Dollars({ label, hint, value, onChange }: DollarsProps) {
  return (
    <Field label={label} hint={hint} param="threshold_amount">
      <Input type="number" required min="0.01" step="0.01" value={value} onChange={(event) => onChange(event.target.value)} />
    </Field>
  );
}
