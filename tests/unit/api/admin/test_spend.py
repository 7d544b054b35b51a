"""Spend limits and alerts through the SDK's admin resources: shapes, pages, refusals, and what stays unchanged."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from openai import BadRequestError, NotFoundError, OpenAI, PermissionDeniedError
from openai.types.admin.organization import OrganizationSpendAlert, OrganizationSpendLimit
from openai.types.admin.organization.projects import ProjectSpendAlert, ProjectSpendLimit
from sqlalchemy import func, select

from jobs.clock import now
from jobs.ledger.tables import Audit
from jobs.security.keys import create_admin_key, ensure_project
from jobs.security.tables import Project
from jobs.usage import alerts
from jobs.usage.budgets import MICROS_PER_CENT
from jobs.usage.minutes import month_of
from jobs.usage.tables import Spend, SpendAlert, SpendLimit
from tests.support.web import make_key, serve

LIMIT: Any = {"threshold_amount": 500, "currency": "USD", "interval": "month"}
CHANNEL = {"type": "email", "recipients": ["ops@example.com"]}
ALERT: Any = {**LIMIT, "notification_channel": CHANNEL}


@pytest.fixture
def project(app: FastAPI) -> str:
    with app.state.services.db.write() as session:
        return str(ensure_project(session, "default").id)


@pytest.fixture
def sdk(app: FastAPI) -> Iterator[OpenAI]:
    with app.state.services.db.write() as session:
        key = create_admin_key(session)
    with serve(app) as url, OpenAI(admin_api_key=key, base_url=f"{url}/v1", max_retries=0) as client:
        yield client


def owners(sdk: OpenAI, project: str) -> list[tuple[Any, Any, dict[str, str], str]]:
    """Return limits, alerts, their path arguments and the first word of their objects, for both levels."""
    organization: Any = sdk.admin.organization
    return [
        (organization.spend_limit, organization.spend_alerts, {}, "organization"),
        (organization.projects.spend_limit, organization.projects.spend_alerts, {"project_id": project}, "project"),
    ]


def test_limit_is_set_replaced_and_deleted(app: FastAPI, sdk: OpenAI, project: str) -> None:
    for limits, _, args, noun in owners(sdk, project):
        with pytest.raises(NotFoundError) as missing:
            limits.retrieve(**args)
        made, replaced = limits.update(**args, **LIMIT), limits.update(**args, **{**LIMIT, "threshold_amount": 700})
        deleted = limits.delete(**args)

        assert missing.value.code == "spend_limit_not_found"
        assert isinstance(made, ProjectSpendLimit if args else OrganizationSpendLimit)
        assert made.to_dict() == {"object": f"{noun}.spend_limit", **LIMIT, "enforcement": {"status": "inactive"}}
        assert replaced.threshold_amount == 700
        assert deleted.to_dict() == {"object": f"{noun}.spend_limit.deleted", "deleted": True}
        with pytest.raises(NotFoundError):
            limits.delete(**args)
    with app.state.services.db.read() as session:
        rows = session.execute(select(Audit.action, Audit.target).where(Audit.action.like("spend_limit.%"))).all()
    assert sorted(map(tuple, rows)) == sorted(
        (f"spend_limit.{word}", target)
        for target in ("organization", project)
        for word in ("update", "update", "delete")
    )


def test_reached_limit_is_enforcing(app: FastAPI, sdk: OpenAI, project: str) -> None:
    for limits, _, args, _ in owners(sdk, project):
        limits.update(**args, **LIMIT)
    with app.state.services.db.write() as session:
        session.add(Spend(project_id=project, month=month_of(now()), amount=500 * MICROS_PER_CENT))

    for limits, _, args, _ in owners(sdk, project):
        assert limits.retrieve(**args).enforcement.status == "enforcing"
        limits.update(**args, **{**LIMIT, "threshold_amount": 501})
        assert limits.retrieve(**args).enforcement.status == "inactive"


def test_alert_is_created_updated_and_deleted(app: FastAPI, sdk: OpenAI, project: str) -> None:
    for _, resource, args, noun in owners(sdk, project):
        made = resource.create(**args, **ALERT)
        channel = {**CHANNEL, "recipients": ["a@example.com", "b@example.com"], "subject_prefix": "Spend"}
        changed = resource.update(made.id, **args, **{**ALERT, "threshold_amount": 0, "notification_channel": channel})
        found = resource.retrieve(made.id, **args)
        deleted = resource.delete(made.id, **args)

        assert isinstance(made, ProjectSpendAlert if args else OrganizationSpendAlert)
        assert made.id.startswith("alert_")
        assert made.to_dict() == {
            "id": made.id,
            "object": f"{noun}.spend_alert",
            **LIMIT,
            "notification_channel": {**CHANNEL, "subject_prefix": None},
        }
        assert found == changed
        assert (found.threshold_amount, found.notification_channel.to_dict()) == (0, channel)
        assert deleted.to_dict() == {"id": made.id, "object": f"{noun}.spend_alert.deleted", "deleted": True}
        with pytest.raises(NotFoundError):
            resource.retrieve(made.id, **args)
    with app.state.services.db.read() as session:
        details = session.scalars(select(Audit.details).where(Audit.action.like("spend_alert.%"))).all()
    assert [sorted(row) for row in details if row] == [["threshold_amount"]] * 6  # no address


def test_alerts_are_listed_by_pages(sdk: OpenAI, project: str) -> None:
    for _, resource, args, _ in owners(sdk, project):
        ids = [resource.create(**args, **ALERT).id for _ in range(5)]

        assert [alert.id for alert in resource.list(**args, limit=2)] == ids
        assert [alert.id for alert in resource.list(**args, limit=2, order="desc")] == ids[::-1]
        assert [alert.id for alert in resource.list(**args, before=ids[2]).data] == ids[:2]
        page = resource.list(**args, after=ids[1], limit=2)
        assert ([alert.id for alert in page.data], page.has_more, page.last_id) == (ids[2:4], True, ids[3])
        with pytest.raises(BadRequestError):
            resource.list(**args, limit=0)


def test_alert_with_another_threshold_may_fire_twice(app: FastAPI, sdk: OpenAI) -> None:
    resource = sdk.admin.organization.spend_alerts
    alert = resource.create(**ALERT)
    with app.state.services.db.write() as session:
        assert alerts.fire(session, alert.id)

    resource.update(alert.id, **ALERT)
    with app.state.services.db.read() as session:
        assert session.get_one(SpendAlert, alert.id).fired_month == alerts.month_of_alerts()
    resource.update(alert.id, **{**ALERT, "threshold_amount": 501})
    with app.state.services.db.read() as session:
        assert session.get_one(SpendAlert, alert.id).fired_month is None


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"threshold_amount": 0}, "threshold_amount"),
        ({"threshold_amount": 1.5}, "threshold_amount"),
        ({"threshold_amount": "5"}, "threshold_amount"),
        ({"threshold_amount": True}, "threshold_amount"),
        ({"threshold_amount": 10**30}, "threshold_amount"),
        ({"currency": "EUR"}, "currency"),
        ({"interval": "day"}, "interval"),
        ({"project_id": "p"}, "project_id"),
    ],
)
def test_bad_limit_is_refused_and_changes_nothing(
    app: FastAPI, sdk: OpenAI, project: str, change: dict[str, Any], param: str
) -> None:
    for limits, _, args, _ in owners(sdk, project):
        with pytest.raises(BadRequestError) as refused:
            limits.update(**args, **LIMIT, extra_body=change)
        assert refused.value.param == param
    with app.state.services.db.read() as session:
        assert session.scalar(select(func.count()).select_from(SpendLimit)) == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"threshold_amount": -1}, "threshold_amount"),
        ({"notification_channel": {"type": "sms", "recipients": ["a@b"]}}, "notification_channel.type"),
        ({"notification_channel": {"type": "email", "recipients": []}}, "notification_channel.recipients"),
        ({"notification_channel": {"type": "email", "recipients": ["a@b"] * 51}}, "notification_channel.recipients"),
        ({"fired_month": 0}, "fired_month"),
    ],
)
def test_bad_alert_is_refused_and_changes_nothing(
    app: FastAPI, sdk: OpenAI, project: str, change: dict[str, Any], param: str
) -> None:
    for _, resource, args, _ in owners(sdk, project):
        with pytest.raises(BadRequestError) as refused:
            resource.create(**args, **ALERT, extra_body=change)
        assert refused.value.param == param
    with app.state.services.db.read() as session:
        assert session.scalar(select(func.count()).select_from(SpendAlert)) == 0


def test_alert_of_another_owner_is_not_found(sdk: OpenAI, project: str) -> None:
    both = owners(sdk, project)
    for (_, resource, args, _), (_, others, other_args, _) in zip(both, reversed(both), strict=True):
        alert = others.create(**other_args, **ALERT)
        for call in (resource.retrieve, resource.delete):
            with pytest.raises(NotFoundError):
                call(alert.id, **args)
        with pytest.raises(NotFoundError):
            resource.update(alert.id, **args, **ALERT)
        with pytest.raises(BadRequestError):
            resource.list(**args, after=alert.id)
        assert others.retrieve(alert.id, **other_args) == alert


def test_unknown_and_archived_projects_are_refused(app: FastAPI, sdk: OpenAI, project: str) -> None:
    projects = sdk.admin.organization.projects
    with pytest.raises(NotFoundError) as unknown:
        projects.spend_limit.update("proj_none", **LIMIT)
    with app.state.services.db.write() as session:
        session.get_one(Project, project).archived_at = now()
    with pytest.raises(BadRequestError) as archived:
        projects.spend_alerts.create(project, **ALERT)

    assert (unknown.value.code, archived.value.code) == ("project_not_found", "project_archived")


def test_key_of_a_project_sets_no_limit(app: FastAPI, sdk: OpenAI, project: str) -> None:
    own = sdk.with_options(admin_api_key=make_key(app))
    for limits, resource, args, _ in owners(own, project):
        for call in (limits.update, limits.retrieve, limits.delete, resource.create, resource.list):
            with pytest.raises(PermissionDeniedError):
                call(**args, **(LIMIT if call == limits.update else ALERT if call == resource.create else {}))
