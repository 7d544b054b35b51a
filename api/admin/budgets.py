"""Budgets of this month: what each project, and all together, have spent and reserved, beside their spend limits."""

from typing import Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, admin_page
from api.admin.queries import find_project
from api.admin.spend import Enforcement
from api.deps import Admin, AdminContext
from api.http.bodies import resource
from api.http.paging import After, Limit20, find
from jobs.security.tables import Project
from jobs.usage.budgets import MICROS_PER_CENT, ORGANIZATION, budget_of, models_without_price

router = resource("Organization", area="management", admin=True)

_NAME = "organization"


class BudgetObject(BaseModel):
    """A budget of this calendar month (UTC), in cents. `reserved_amount` is the most that running work may cost."""

    id: str
    object: Literal["organization.budget"] = "organization.budget"
    name: str
    threshold_amount: int | None = Field(description="The spend limit; null: there is none.")
    spent_amount: float
    reserved_amount: float
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    enforcement: Enforcement


class OrganizationBudget(BudgetObject):
    """The budget of all projects together. The work of `unpriced_models` costs nothing, and counts towards no limit."""

    unpriced_models: list[str]


@router.get("/organization/budget")
def retrieve_budget(call: Admin) -> OrganizationBudget:
    """Return the budget of all projects together."""
    with call.db.read() as session:
        budget = _show_budget(call, session, ORGANIZATION, _NAME)
        registry = call.services.registry()
        free = models_without_price(session, registry.models.values(), registry.price_source)
    return OrganizationBudget(**budget.model_dump(), unpriced_models=free)


@router.get("/organization/budgets")
def list_budgets(call: Admin, after: After = None, limit: Limit20 = 20) -> AdminPage[BudgetObject]:
    """List the budgets of the projects that are not archived, those of the newest projects first."""
    every = select(Project)
    with call.db.read() as session:
        live = every.where(Project.archived_at.is_(None))
        rows, more = find(session, live, Project, after=after, limit=limit, among=every)
        return admin_page(rows, more, lambda row: _show_budget(call, session, row.id, row.name))


@router.get("/organization/projects/{project_id}/budget")
def retrieve_project_budget(call: Admin, project_id: str) -> BudgetObject:
    """Return the budget of a project."""
    with call.db.read() as session:
        project = find_project(session, project_id)
        return _show_budget(call, session, project.id, project.name)


def _show_budget(call: AdminContext, session: Session, owner: str, name: str) -> BudgetObject:
    budget = budget_of(session, owner, call.services.registry().price_source)
    return BudgetObject(
        id=owner or _NAME,
        name=name,
        threshold_amount=None if budget.limit is None else budget.limit // MICROS_PER_CENT,
        spent_amount=budget.spent / MICROS_PER_CENT,
        reserved_amount=budget.reserved / MICROS_PER_CENT,
        enforcement=Enforcement(status="enforcing" if budget.is_exhausted else "inactive"),
    )
