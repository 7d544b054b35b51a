import { adminApi, take, type Schema } from "@/api/client";
import { getAllAsAdmin, refresh, type AnyQuery } from "@/api/get";
import { formatDollars } from "@/components/format";

export type Budget = Schema<"BudgetObject">;
export type SpendAlert = Schema<"SpendAlertObject">;

/** Whose budget it is: the id of a project, or null for the organization. */
export type Owner = string | null;

const MONTHLY = { currency: "USD", interval: "month" } as const;

/** Write an amount of cents in dollars. */
export function formatCents(cents: number): string {
  return formatDollars(cents / 100);
}

/** Return the cents of an amount in dollars as a form has it. */
export function centsOf(dollars: string): number {
  return Math.round(Number(dollars) * 100);
}

function refreshBudgets(): Promise<void> {
  return refresh("/v1/organization/budget", "/v1/organization/budgets", "/v1/organization/projects/{project_id}/budget");
}

/** Set the most that a month may cost, in cents. */
export async function setLimit(owner: Owner, threshold_amount: number): Promise<void> {
  const body = { ...MONTHLY, threshold_amount };
  if (owner === null) await take(adminApi.POST("/v1/organization/spend_limit", { body }));
  else await take(adminApi.POST("/v1/organization/projects/{project_id}/spend_limit", { params: { path: { project_id: owner } }, body }));
  await refreshBudgets();
}

/** Remove the spend limit. */
export async function removeLimit(owner: Owner): Promise<void> {
  if (owner === null) await take(adminApi.DELETE("/v1/organization/spend_limit"));
  else await take(adminApi.DELETE("/v1/organization/projects/{project_id}/spend_limit", { params: { path: { project_id: owner } } }));
  await refreshBudgets();
}

/** Return the options of the query of all alerts. */
export function alertsOf(owner: Owner): AnyQuery<SpendAlert[]> {
  if (owner === null) return getAllAsAdmin("/v1/organization/spend_alerts", { query: { limit: 100 } });
  return getAllAsAdmin("/v1/organization/projects/{project_id}/spend_alerts", { path: { project_id: owner }, query: { limit: 100 } });
}

function refreshAlerts(): Promise<void> {
  return refresh("/v1/organization/spend_alerts", "/v1/organization/projects/{project_id}/spend_alerts");
}

/** Create an alert that fires when a month costs as many cents. */
export async function createAlert(owner: Owner, threshold_amount: number, recipients: string[]): Promise<void> {
  const body = { ...MONTHLY, threshold_amount, notification_channel: { type: "email" as const, recipients } };
  if (owner === null) await take(adminApi.POST("/v1/organization/spend_alerts", { body }));
  else await take(adminApi.POST("/v1/organization/projects/{project_id}/spend_alerts", { params: { path: { project_id: owner } }, body }));
  await refreshAlerts();
}

/** Delete an alert. */
export async function deleteAlert(owner: Owner, alert_id: string): Promise<void> {
  if (owner === null) await take(adminApi.DELETE("/v1/organization/spend_alerts/{alert_id}", { params: { path: { alert_id } } }));
  else {
    const path = { project_id: owner, alert_id };
    await take(adminApi.DELETE("/v1/organization/projects/{project_id}/spend_alerts/{alert_id}", { params: { path } }));
  }
  await refreshAlerts();
}
