"""Budgets of the month: what is spent and reserved beside the spend limit, by project and for all of them."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from openai import NotFoundError, OpenAI

from jobs.clock import now
from jobs.security.keys import create_admin_key, ensure_project
from jobs.security.projects import archive
from jobs.security.tables import Project
from jobs.usage.budgets import MICROS_PER_CENT, change_limit
from jobs.usage.minutes import month_of
from jobs.usage.prices import set_prices
from jobs.usage.tables import Reservation, Spend
from tests.support.web import serve


@pytest.fixture
def sdk(app: FastAPI) -> Iterator[OpenAI]:
    with app.state.services.db.write() as session:
        key = create_admin_key(session)
    with serve(app) as url, OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
def projects(app: FastAPI) -> list[str]:
    """Return the ids of three projects, the oldest first: with a limit that is reached, without one, archived."""
    with app.state.services.db.write() as session:
        ids = [ensure_project(session, name).id for name in ("limited", "free", "archived")]
        for number, project_id in enumerate(ids):
            session.get_one(Project, project_id).created_at = float(number)
            spend = Spend(project_id=project_id, month=month_of(now()), amount=(number + 1) * 25_000)
            session.add_all([spend, Spend(project_id=project_id, month=0, amount=10**9)])
        reservation = Reservation(id="r", project_id=ids[0], amount=5 * MICROS_PER_CENT, expires_at=now() + 3600)
        session.add(reservation)
        change_limit(session, ids[0], 7, actor="operator")
        archive(session, session.get_one(Project, ids[2]), actor="operator")
    return ids


def get(sdk: OpenAI, path: str, **query: Any) -> Any:
    return sdk.get(f"/organization/{path}", cast_to=object, options={"params": query})


def test_budget_of_project_sums_spend_and_reservations_of_this_month(sdk: OpenAI, projects: list[str]) -> None:
    assert get(sdk, f"projects/{projects[0]}/budget") == {
        "id": projects[0],
        "object": "organization.budget",
        "name": "limited",
        "threshold_amount": 7,
        "spent_amount": 2.5,
        "reserved_amount": 5.0,
        "currency": "USD",
        "interval": "month",
        "enforcement": {"status": "enforcing"},
    }


def test_budgets_are_listed_by_pages_without_archived_projects(sdk: OpenAI, projects: list[str]) -> None:
    first = get(sdk, "budgets", limit=1)
    second = get(sdk, "budgets", limit=1, after=first["next"])

    rows = [*first["data"], *second["data"]]
    assert [row["id"] for row in rows] == [projects[1], projects[0]]
    assert [(row["threshold_amount"], row["enforcement"]["status"]) for row in rows] == [
        (None, "inactive"),
        (7, "enforcing"),
    ]
    assert (first["has_more"], second["has_more"], second["next"]) == (True, False, None)


def test_budget_of_organization_sums_all_projects_and_names_models_without_price(
    app: FastAPI, sdk: OpenAI, projects: list[str]
) -> None:
    budget = get(sdk, "budget")
    unpriced = budget["unpriced_models"]
    with app.state.services.db.write() as session:
        set_prices(session, unpriced[0], {"input": 1.0, "output": 1.0}, 0, actor="operator")

    assert (budget["id"], budget["spent_amount"], budget["reserved_amount"]) == ("organization", 15.0, 5.0)
    assert budget["threshold_amount"] is None
    assert get(sdk, "budget")["unpriced_models"] == unpriced[1:]


def test_budget_of_unknown_project_is_not_found(sdk: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        get(sdk, "projects/proj_nobody/budget")
