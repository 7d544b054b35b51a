"""The projects of the organization, by the official SDK."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI
from openai.resources.admin.organization import Organization
from sqlalchemy import select

from jobs.ledger.tables import Audit
from jobs.schedules.tables import Schedule
from jobs.security.tables import Project
from tests.support.web import make_key


def code_of(call: Callable[[], Any]) -> str | None:
    with pytest.raises(BadRequestError) as refusal:
        call()
    return refusal.value.code


def test_new_project_has_the_fields_of_openai_and_ours(organization: Organization) -> None:
    made = organization.projects.create(name="reports", extra_body={"weight": 2.5, "allow_external": True})

    shown = organization.projects.retrieve(made.id)

    assert shown == made
    assert made.id.startswith("proj_")
    assert (made.name, made.object, made.status, made.archived_at) == (
        "reports", "organization.project", "active", None,
    )  # fmt: skip
    assert (made.weight, made.allow_external, made.allow_media_urls) == (2.5, True, False)  # type: ignore[attr-defined]


def test_projects_are_listed_over_pages_and_archived_ones_on_request(organization: Organization) -> None:
    made = [organization.projects.create(name=f"p{n}").id for n in range(3)]
    organization.projects.archive(made[1])

    live, every = (list(organization.projects.list(limit=1, include_archived=more)) for more in (False, True))

    assert [project.id for project in every if project.id in made] == made[::-1]
    assert [project.id for project in live if project.id in made] == [made[2], made[0]]


def test_update_changes_given_fields_alone_and_is_audited(app: FastAPI, organization: Organization) -> None:
    made = organization.projects.create(name="reports", extra_body={"weight": 2})

    changed = organization.projects.update(made.id, name="figures", external_key_id=None)

    assert (changed.name, changed.weight) == ("figures", 2)  # type: ignore[attr-defined]
    with app.state.services.db.read() as session:
        rows = session.scalars(select(Audit).where(Audit.target == made.id).order_by(Audit.id)).all()
        assert [row.request_id is None for row in rows] == [False] * 3
        assert [(row.action, row.details) for row in rows] == [
            ("project.create", None),
            ("project.update", {"weight": 2.0}),
            ("project.update", {"name": "figures"}),
        ]


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": 0},
        {"weight": -1},
        {"weight": True},
        {"weight": "2"},
        {"limits": {}},
        {"residency": "US"},
        {"name": ""},
    ],
)
def test_bad_field_changes_nothing(organization: Organization, fields: dict[str, Any]) -> None:
    made = organization.projects.create(name="reports")

    with pytest.raises(BadRequestError) as refusal:
        organization.projects.update(made.id, extra_body=fields)

    assert str(refusal.value.param) in fields
    assert organization.projects.retrieve(made.id) == made


def test_default_project_keeps_its_name_and_is_not_archived(app: FastAPI, organization: Organization) -> None:
    make_key(app)
    default = next(project for project in organization.projects.list() if project.name == "default")

    assert code_of(lambda: organization.projects.archive(default.id)) == "default_project"
    assert code_of(lambda: organization.projects.update(default.id, name="other")) == "default_project"
    assert organization.projects.update(default.id, extra_body={"weight": 3}).name == "default"


def test_archived_project_refuses_keys_pauses_schedules_and_frees_its_name(
    app: FastAPI, organization: Organization, url: str
) -> None:
    key, project = make_key(app, "reports"), organization.projects.list().data[0].id
    with app.state.services.db.write() as session:
        facts = {"cron": "* * * * *", "timezone": "UTC", "request": {}, "input_file_id": "file-1", "next_at": 1.0}
        session.add(Schedule(id="sched_1", project_id=project, created_at=1.0, **facts))

    archived = organization.projects.archive(project)

    assert (archived.status, archived.archived_at is not None) == ("archived", True)
    with app.state.services.db.read() as session:
        assert session.get_one(Schedule, "sched_1").paused_at == session.get_one(Project, project).archived_at
    assert code_of(lambda: organization.projects.archive(project)) == "project_archived"
    assert code_of(lambda: organization.projects.update(project, name="x")) == "project_archived"
    assert code_of(lambda: organization.projects.service_accounts.list(project)) == "project_archived"
    assert organization.projects.create(name="reports").id != project
    assert code_of(lambda: organization.projects.create(name="reports")) == "project_exists"
    with (
        OpenAI(api_key=key, base_url=url, max_retries=0) as client,
        pytest.raises(AuthenticationError, match="archived"),
    ):
        client.files.list()


def test_unknown_project_is_not_found(organization: Organization) -> None:
    with pytest.raises(NotFoundError):
        organization.projects.retrieve("proj_unknown")
