"""The keys of a project, seen with an admin key by the official SDK."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, PermissionDeniedError
from openai.resources.admin.organization import Organization

from jobs.clock import now
from jobs.security import roles
from jobs.security.keys import add_key, create_admin_key, create_key, id_of
from jobs.security.tables import ApiKey, GroupMember
from tests.support.organization import add_user, admin_key
from tests.support.web import make_key


@pytest.fixture
def project(organization: Organization) -> str:
    return organization.projects.create(name="reports").id


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[str], OpenAI]]:
    """Return a function that makes a client with the key of a project."""
    with ExitStack() as stack:
        yield lambda key: stack.enter_context(OpenAI(api_key=key, base_url=url, max_retries=0))


def test_keys_are_listed_with_owner_and_without_secret(app: FastAPI, organization: Organization, project: str) -> None:
    values = [make_key(app, "reports") for _ in range(3)]
    make_key(app, "other")

    listed = list(organization.projects.api_keys.list(project, limit=2))

    assert [key.id for key in listed] == [f"key_{id_of(value)}" for value in values[::-1]]
    assert {key.owner_project_access for key in listed} == {"active"}
    for key, value in zip(listed, values[::-1], strict=True):
        account = key.owner.service_account
        assert account is not None
        assert (key.owner.type, account.name, account.role) == ("service_account", key.name, "member")
        assert value not in key.to_json()
        assert key.redacted_value == f"{value[:11]}...{value[-4:]}"


def test_filter_by_access_selects_by_the_field_of_the_key(
    app: FastAPI, organization: Organization, project: str
) -> None:
    member, stranger, in_group = (add_user(app, f"{name}@example.com") for name in ("member", "stranger", "group"))
    accounts = organization.projects.service_accounts
    unable = accounts.create(project, name="unable", create_service_account_only=True)
    deleted = accounts.create(project, name="deleted")
    with app.state.services.db.write() as session:
        for user_id in (member, stranger, in_group):
            roles.unassign(session, user_id, "", ["role-org-reader"])
        roles.assign(session, "role-project-owner", member, project, "operator")
        session.add(GroupMember(group_id="group_x", account_id=in_group, created_at=1.0))
        roles.assign(session, "role-project-viewer", "group_x", project, "operator")
        owners = {user_id: add_key(session, project, owner_id=user_id) for user_id in (member, stranger, in_group)}
        owners["unable"] = add_key(session, project, owner_id=unable.id)
    assert deleted.api_key
    accounts.delete(deleted.id, project_id=project)
    keys = organization.projects.api_keys

    def access(value: Any) -> set[str]:
        return {key.id.removeprefix("key_") for key in keys.list(project, owner_project_access=value)}

    shown = {key.id.removeprefix("key_"): key.owner_project_access for key in keys.list(project)}
    active = {id_of(owners[user_id]) for user_id in (member, in_group)}
    owner = keys.retrieve(id_of(owners[member]), project_id=project).owner.user
    selected = access("active"), access("inactive")
    organization.projects.archive(project)
    archived = {key.owner_project_access for key in keys.list(project)}

    assert {key for key, word in shown.items() if word == "active"} == active
    assert selected == (active, shown.keys() - active)
    assert len(shown) == 5
    assert (archived, access("active"), access("inactive")) == ({"inactive"}, set(), shown.keys())
    assert owner is not None
    assert owner.role == "owner"


def test_scopes_narrow_a_key_and_an_empty_list_frees_it(
    app: FastAPI, organization: Organization, project: str, connect: Callable[[str], OpenAI]
) -> None:
    value = make_key(app, "reports")
    key = f"key_{id_of(value)}"

    narrowed = organization.projects.api_keys.update(key, project_id=project, scopes=["api.batch.read"])
    with pytest.raises(PermissionDeniedError) as refusal:
        connect(value).files.list()
    assert connect(value).batches.list().data == []
    freed = organization.projects.api_keys.update(id_of(value), project_id=project, scopes=[])

    assert refusal.value.code == "missing_scope"
    assert [shown.to_dict()["scopes"] for shown in (narrowed, freed)] == [["api.batch.read"], []]


def test_expired_key_is_not_changed(app: FastAPI, organization: Organization, project: str) -> None:
    key = id_of(make_key(app, "reports"))
    ending = organization.projects.api_keys.update(key, project_id=project, expires_in_seconds=1)

    assert ending.expires_at is not None
    with app.state.services.db.write() as session:
        session.get_one(ApiKey, key).expires_at = 1.0
    with pytest.raises(BadRequestError) as refusal:
        organization.projects.api_keys.update(key, project_id=project, scopes=[])
    assert refusal.value.code == "key_expired"


def test_key_of_a_user_is_shortened_and_not_prolonged(app: FastAPI, organization: Organization, project: str) -> None:
    user, end = add_user(app, "eva@example.com"), now() + 3600
    with app.state.services.db.write() as session:
        key = id_of(create_key(session, "reports", owner_id=user, expires_at=end))

    ends = [
        organization.projects.api_keys.update(key, project_id=project, expires_in_seconds=seconds).expires_at
        for seconds in (31_536_000, 60)
    ]

    assert ends[0] == int(end)
    assert ends[1] == pytest.approx(now() + 60, abs=30)


@pytest.mark.parametrize(
    ("fields", "code"),
    [({}, "missing_required_parameter"), ({"scopes": ["api.files.fly"]}, "unknown_permission"), ({"name": "x"}, None)],
)
def test_bad_change_is_refused(
    app: FastAPI, organization: Organization, project: str, fields: dict[str, object], code: str | None
) -> None:
    key = id_of(make_key(app, "reports"))

    with pytest.raises(BadRequestError) as refusal:
        organization.projects.api_keys.update(key, project_id=project, extra_body=fields)

    assert refusal.value.code == code or (code is None and refusal.value.param == "name")


def test_deleted_key_opens_nothing_and_is_not_listed(
    app: FastAPI, organization: Organization, project: str, connect: Callable[[str], OpenAI]
) -> None:
    value = make_key(app, "reports")

    deleted = organization.projects.api_keys.delete(f"key_{id_of(value)}", project_id=project)

    assert (deleted.id, deleted.deleted) == (f"key_{id_of(value)}", True)
    assert organization.projects.api_keys.list(project).data == []
    with pytest.raises(NotFoundError):
        organization.projects.api_keys.retrieve(id_of(value), project_id=project)
    with pytest.raises(AuthenticationError, match="revoked"):
        connect(value).files.list()


def test_key_of_another_project_is_not_found(app: FastAPI, organization: Organization, project: str) -> None:
    other = id_of(make_key(app, "other"))
    with app.state.services.db.write() as session:
        admin = id_of(create_admin_key(session))

    for key in (other, admin):
        with pytest.raises(NotFoundError):
            organization.projects.api_keys.retrieve(key, project_id=project)
        with pytest.raises(NotFoundError):
            organization.projects.api_keys.delete(key, project_id=project)
        with pytest.raises(NotFoundError):
            organization.projects.api_keys.update(key, project_id=project, scopes=[])


def test_admin_key_grants_no_permission_beyond_its_own(app: FastAPI, project: str, url: str) -> None:
    key = id_of(make_key(app, "reports"))
    own = ["api.organization.projects.api_keys.read", "api.organization.projects.api_keys.write", "api.files.read"]
    with app.state.services.db.write() as session:
        narrow = create_admin_key(session, scopes=own)

    with OpenAI(admin_api_key=narrow, base_url=url, max_retries=0) as client:
        keys = client.admin.organization.projects.api_keys
        with pytest.raises(PermissionDeniedError) as wider:
            keys.update(key, project_id=project, scopes=["api.files.write"])
        with pytest.raises(PermissionDeniedError):
            keys.update(key, project_id=project, scopes=[])
        granted = keys.update(key, project_id=project, scopes=["api.files.read"])

    assert "api.files.write" in wider.value.message
    assert granted.to_dict()["scopes"] == ["api.files.read"]


def test_reader_of_the_organization_sees_keys_and_changes_none(app: FastAPI, project: str, url: str) -> None:
    key = id_of(make_key(app, "reports"))
    reader = admin_key(app, owner_id=add_user(app, "eva@example.com", role="reader"))

    with OpenAI(admin_api_key=reader, base_url=url, max_retries=0) as client:
        keys = client.admin.organization.projects.api_keys
        for call in (
            lambda: keys.delete(key, project_id=project),
            lambda: keys.update(key, project_id=project, expires_in_seconds=60),
        ):
            with pytest.raises(PermissionDeniedError):
                call()
        assert [shown.id for shown in keys.list(project)] == [f"key_{key}"]
