"""Users and invites by the SDK: every method, its classes, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from openai import BadRequestError, NotFoundError, PermissionDeniedError
from openai.resources.admin.organization import Organization
from openai.types.admin.organization import Invite, OrganizationUser
from sqlalchemy import select, update

from jobs.security import keys, tables
from jobs.security.permissions import ALL
from jobs.security.roles import permissions_of
from tests.support.organization import add_user, admin_client, admin_key, project_id


def test_user_has_the_fields_of_the_sdk(app: FastAPI, organization: Organization) -> None:
    project = project_id(app, "Search")
    user_id = add_user(app, "ada@example.com", "owner", [{"id": project, "role": "member"}])

    user = organization.users.retrieve(user_id)

    assert isinstance(user, OrganizationUser)
    assert (user.object, user.email, user.name, user.role) == ("organization.user", "ada@example.com", "Ada", "owner")
    assert user.projects
    assert [(entry.id, entry.name, entry.role) for entry in user.projects.data] == [(project, "Search", "member")]
    assert user.user
    assert (user.user.id, user.user.email) == (user_id, "ada@example.com")
    assert user.is_service_account is user.is_scim_managed is False


def test_users_are_listed_in_pages_and_by_address(app: FastAPI, organization: Organization) -> None:
    ids = [add_user(app, f"u{number}@example.com") for number in range(5)]

    pages = [user.id for user in organization.users.list(limit=2)]
    found = [user.email for user in organization.users.list(emails=["U3@example.com", "nobody@example.com"])]

    assert pages == ids[::-1]
    assert found == ["u3@example.com"]


def test_role_of_a_user_is_replaced(app: FastAPI, organization: Organization) -> None:
    add_user(app, "eva@example.com", "owner")
    user_id = add_user(app, "ada@example.com")

    owner = organization.users.update(user_id, role="owner")
    reader = organization.users.update(user_id, role_id="role-org-reader")
    unchanged = organization.users.update(user_id)

    assert [owner.role, reader.role, unchanged.role] == ["owner", "reader", "reader"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"role": "king"}, "invalid_value"),
        ({"role": "owner", "role_id": "role-org-owner"}, "invalid_value"),
        ({"developer_persona": "hacker"}, "invalid_value"),
        ({"permissions": ["api.management.write"]}, "unknown_parameter"),
    ],
)
def test_wrong_change_of_a_user_is_refused(
    app: FastAPI, organization: Organization, body: dict[str, object], code: str
) -> None:
    user_id = add_user(app, "ada@example.com")

    with pytest.raises(BadRequestError) as refused:
        organization.users.update(user_id, extra_body=body)

    assert refused.value.code == code
    assert organization.users.retrieve(user_id).role == "reader"


@pytest.mark.parametrize("role_id", ["role-project-owner", "role_unknown"])
def test_role_of_another_level_is_not_found(app: FastAPI, organization: Organization, role_id: str) -> None:
    user_id = add_user(app, "ada@example.com")

    with pytest.raises(NotFoundError):
        organization.users.update(user_id, role_id=role_id)


def test_removed_user_loses_keys_roles_and_groups(app: FastAPI, organization: Organization) -> None:
    eva = add_user(app, "eva@example.com", "owner")
    user_id = add_user(app, "ada@example.com", "owner")
    key = admin_key(app, owner_id=user_id)
    group = organization.groups.create(name="Search")
    organization.groups.users.create(group.id, user_id=user_id)
    with admin_client(app, key) as own:
        assert own.users.retrieve(user_id).id == user_id

    removed = organization.users.delete(user_id)

    assert (removed.id, removed.deleted, removed.object) == (user_id, True, "organization.user.deleted")
    held = tables.RoleAssignment.principal_id == user_id
    with app.state.services.db.read() as session:
        assert session.get_one(tables.ApiKey, keys.id_of(key)).revoked_at is not None
        assert session.scalars(select(tables.RoleAssignment).where(held)).all() == []
    assert list(organization.groups.users.list(group.id)) == []
    assert [user.id for user in organization.users.list()] == [eva]
    with pytest.raises(NotFoundError):
        organization.users.delete(user_id)


def test_list_with_more_values_than_it_takes_is_refused(organization: Organization) -> None:
    names = [f"u{number}" for number in range(101)]

    with pytest.raises(BadRequestError):
        organization.users.list(emails=names)
    with pytest.raises(BadRequestError):
        organization.users.list(extra_query={"emails": ",".join(names)})
    assert list(organization.users.list(emails=names[:100])) == []


@pytest.mark.parametrize("is_by_group", [False, True])
def test_last_owner_stays(app: FastAPI, organization: Organization, is_by_group: bool) -> None:
    user_id = add_user(app, "ada@example.com", "reader" if is_by_group else "owner")
    group = organization.groups.create(name="Owners")
    if is_by_group:
        organization.groups.users.create(group.id, user_id=user_id)
        organization.groups.roles.create(group.id, role_id="role-org-owner")
        takes: list[Callable[[], Any]] = [
            lambda: organization.groups.roles.delete("role-org-owner", group_id=group.id),
            lambda: organization.groups.users.delete(user_id, group_id=group.id),
            lambda: organization.groups.delete(group.id),
        ]
    else:
        takes = [
            lambda: organization.users.update(user_id, role="reader"),
            lambda: organization.users.roles.delete("role-org-owner", user_id=user_id),
        ]
    for take in [*takes, lambda: organization.users.delete(user_id)]:
        with pytest.raises(BadRequestError) as refused:
            take()
        assert refused.value.code == "last_owner"
    with app.state.services.db.read() as session:
        assert permissions_of(session, user_id, "") == ALL

    add_user(app, "eva@example.com", "owner")
    takes[0]()

    with app.state.services.db.read() as session:
        assert permissions_of(session, user_id, "") != ALL


def test_invite_is_pending_until_it_is_accepted(app: FastAPI, organization: Organization) -> None:
    default = project_id(app, "default")
    invite = organization.invites.create(email=" Ada@Example.com ", role="reader")
    none = organization.invites.create(email="eva@example.com", role="owner", projects=[])

    assert isinstance(invite, Invite)
    assert (invite.email, invite.role, invite.status) == ("ada@example.com", "reader", "pending")
    assert invite.expires_at
    assert invite.expires_at - invite.created_at == 7 * 86_400
    assert [(entry.id, entry.role) for entry in invite.projects] == [(default, "member")]
    assert none.projects == []
    assert [entry.id for entry in organization.invites.list(limit=1)] == [none.id, invite.id]
    assert organization.invites.retrieve(invite.id) == invite


def test_accepted_invite_makes_the_user_it_names(app: FastAPI, organization: Organization) -> None:
    project = project_id(app, "Search")
    user_id = add_user(app, "ada@example.com", "reader", [{"id": project, "role": "owner"}])
    [invite] = list(organization.invites.list())

    assert (invite.status, invite.accepted_at is not None) == ("accepted", True)
    assert organization.projects.users.retrieve(user_id, project_id=project).role == "owner"
    with pytest.raises(BadRequestError) as refused:
        organization.invites.delete(invite.id)
    assert refused.value.code == "invite_accepted"


def test_withdrawn_and_expired_invites_make_no_user(app: FastAPI, organization: Organization) -> None:
    withdrawn = organization.invites.create(email="ada@example.com", role="reader", projects=[])
    expired = organization.invites.create(email="eva@example.com", role="reader", projects=[])
    with app.state.services.db.write() as session:
        session.execute(update(tables.Invite).where(tables.Invite.id == expired.id).values(expires_at=1.0))

    deleted = organization.invites.delete(withdrawn.id)

    assert (deleted.id, deleted.object, deleted.deleted) == (withdrawn.id, "organization.invite.deleted", True)
    assert organization.invites.retrieve(expired.id).status == "expired"
    with pytest.raises(NotFoundError):
        organization.invites.retrieve(withdrawn.id)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"email": "ada", "role": "reader"}, 400, "invalid_value"),
        ({"email": "ada@example.com", "role": "king"}, 400, "invalid_value"),
        (
            {"email": "x@example.com", "role": "reader", "projects": [{"id": "p", "role": "member"}]},
            404,
            "project_not_found",
        ),
        ({"email": "ada@example.com", "role": "reader"}, 400, "user_exists"),
        ({"email": "eva@example.com", "role": "reader"}, 400, "already_invited"),
    ],
)
def test_wrong_invite_is_refused(
    app: FastAPI, organization: Organization, body: dict[str, object], status: int, code: str
) -> None:
    add_user(app, "ada@example.com")
    organization.invites.create(email="eva@example.com", role="reader", projects=[])
    before = len(list(organization.invites.list()))

    with pytest.raises((BadRequestError, NotFoundError)) as refused:
        organization.invites.create(email="", role="reader", extra_body=body)

    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert len(list(organization.invites.list())) == before


def test_key_grants_no_role_beyond_its_own_permissions(app: FastAPI, organization: Organization) -> None:
    user_id = add_user(app, "ada@example.com")
    narrowed = admin_key(app, scopes=["api.management.read", "api.management.write"])

    with admin_client(app, narrowed) as narrow:
        with pytest.raises(PermissionDeniedError) as role:
            narrow.users.update(user_id, role="owner")
        with pytest.raises(PermissionDeniedError) as invite:
            narrow.invites.create(email="eva@example.com", role="owner", projects=[])

    assert role.value.code == invite.value.code == "missing_scope"
    assert organization.users.retrieve(user_id).role == "reader"
    assert [invite.email for invite in organization.invites.list()] == ["ada@example.com"]
