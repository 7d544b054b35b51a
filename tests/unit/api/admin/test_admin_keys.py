"""The admin keys of the organization, by the official SDK."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, PermissionDeniedError
from openai.resources.admin.organization import Organization

from jobs.security.keys import create_admin_key, id_of, revoke_key
from jobs.timings import Timings
from tests.support.organization import add_user, admin_key
from tests.support.web import make_key, serve


def test_new_admin_key_administers_and_shows_its_value_once(organization: Organization, url: str) -> None:
    made = organization.admin_api_keys.create(name="ci", expires_in_seconds=3600)

    shown = organization.admin_api_keys.retrieve(made.id)

    assert made.value.endswith(shown.redacted_value[-4:])
    assert shown.redacted_value.startswith(made.value[:11])
    assert made.value not in shown.to_json()
    assert (shown.name, shown.object) == ("ci", "organization.admin_api_key")
    assert shown.expires_at == pytest.approx(time.time() + 3600, abs=30)
    with OpenAI(admin_api_key=made.value, base_url=url, max_retries=0) as client:
        listed = list(client.admin.organization.admin_api_keys.list(limit=1))
    assert [key.name for key in listed] == ["first", "ci"]


@pytest.mark.parametrize(("seconds", "lifetime"), [(None, 3600), (60, 60), (31_536_000, 3600)])
def test_admin_key_lives_no_longer_than_its_creator(app: FastAPI, url: str, seconds: int | None, lifetime: int) -> None:
    with app.state.services.db.write() as session:
        creator = create_admin_key(session, expires_at=time.time() + 3600)

    with OpenAI(admin_api_key=creator, base_url=url, max_retries=0) as client:
        options = {} if seconds is None else {"expires_in_seconds": seconds}
        made = client.admin.organization.admin_api_keys.create(name="child", **options)

    assert made.expires_at == pytest.approx(time.time() + lifetime, abs=30)


def test_deleted_admin_key_is_not_found_and_the_last_stays(organization: Organization) -> None:
    first = next(iter(organization.admin_api_keys.list()))
    second = organization.admin_api_keys.create(name="second")

    deleted = organization.admin_api_keys.delete(second.id)

    assert (deleted.id, deleted.deleted, deleted.object) == (
        second.id, True, "organization.admin_api_key.deleted",
    )  # fmt: skip
    with pytest.raises(NotFoundError):
        organization.admin_api_keys.retrieve(second.id)
    with pytest.raises(BadRequestError) as refusal:
        organization.admin_api_keys.delete(first.id)
    assert refusal.value.code == "last_admin_key"
    assert organization.admin_api_keys.retrieve(first.id.removeprefix("key_")).id == first.id


@pytest.mark.parametrize(
    "options", [{"expires_at": time.time() + 3600}, {"scopes": ["api.usage.read"]}, {"scopes": ["api.management.read"]}]
)
def test_last_admin_key_that_lasts_and_may_create_others_stays(
    app: FastAPI, organization: Organization, options: dict[str, Any]
) -> None:
    first = next(iter(organization.admin_api_keys.list()))
    with app.state.services.db.write() as session:
        other = id_of(create_admin_key(session, **options))

    with pytest.raises(BadRequestError) as refusal:
        organization.admin_api_keys.delete(first.id)

    assert refusal.value.code == "last_admin_key"
    assert organization.admin_api_keys.delete(other).deleted


@pytest.mark.parametrize("seconds", [0, 31_536_001])
def test_admin_key_lives_for_a_second_to_a_year(organization: Organization, seconds: int) -> None:
    with pytest.raises(BadRequestError) as refusal:
        organization.admin_api_keys.create(name="ci", expires_in_seconds=seconds)

    assert refusal.value.param == "expires_in_seconds"
    assert len(list(organization.admin_api_keys.list())) == 1


def test_narrow_admin_key_creates_no_wider_admin_key(app: FastAPI, organization: Organization, url: str) -> None:
    scopes = ["api.management.read", "api.management.write"]
    with app.state.services.db.write() as session:
        narrow = create_admin_key(session, scopes=scopes)

    with OpenAI(admin_api_key=narrow, base_url=url, max_retries=0) as client:
        made = client.admin.organization.admin_api_keys.create(name="child")
    with OpenAI(admin_api_key=made.value, base_url=url, max_retries=0) as client:
        with pytest.raises(PermissionDeniedError) as refusal:
            client.admin.organization.projects.list()
        assert len(list(client.admin.organization.admin_api_keys.list())) == 3

    assert refusal.value.code == "missing_scope"
    assert "api.organization.projects.read" in refusal.value.message


def test_key_of_a_user_has_the_users_role(app: FastAPI, organization: Organization) -> None:
    users = {role: add_user(app, f"{role}@example.com", role) for role in ("owner", "reader")}
    keys = {id_of(admin_key(app, owner_id=user_id)): role for role, user_id in users.items()}

    shown = {key: organization.admin_api_keys.retrieve(key).owner.role for key in keys}

    assert shown == keys
    assert next(iter(organization.admin_api_keys.list())).owner.role == "owner"


def test_admin_routes_refuse_the_key_of_a_project(app: FastAPI, url: str) -> None:
    with (
        OpenAI(admin_api_key=make_key(app), base_url=url, max_retries=0) as client,
        pytest.raises(PermissionDeniedError) as refusal,
    ):
        client.admin.organization.admin_api_keys.list()

    assert refusal.value.code == "admin_key_required"


def test_revoked_key_creates_no_key_while_its_requests_are_trusted(make_app: Callable[..., FastAPI]) -> None:
    app = make_app(timings=Timings(trusted=600.0))
    with app.state.services.db.write() as session:
        key = create_admin_key(session)

    with serve(app) as url, OpenAI(admin_api_key=key, base_url=f"{url}/v1", max_retries=0) as client:
        organization = client.admin.organization
        project = organization.projects.create(name="reports").id
        account = organization.projects.service_accounts.create(project, name="nightly").id
        with app.state.services.db.write() as session:
            revoke_key(session, id_of(key))
        for call in (
            lambda: organization.admin_api_keys.create(name="child"),
            lambda: organization.projects.service_accounts.create(project, name="second"),
            lambda: organization.projects.service_accounts.api_keys.create(account, project_id=project),
        ):
            with pytest.raises(AuthenticationError, match="revoked"):
                call()
        assert [shown.name for shown in organization.projects.service_accounts.list(project)] == ["nightly"]
        assert len(organization.projects.api_keys.list(project).data) == 1
