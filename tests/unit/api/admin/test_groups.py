"""Groups and their members by the SDK: every method, its classes, and what is refused."""

import pytest
from fastapi import FastAPI
from openai import BadRequestError, NotFoundError, PermissionDeniedError
from openai.resources.admin.organization import Organization
from openai.types.admin.organization import Group, GroupUpdateResponse
from openai.types.admin.organization.groups import OrganizationGroupUser, UserCreateResponse, UserRetrieveResponse

from jobs.security import accounts
from tests.support.organization import add_user, admin_client, admin_key, identity_of


def test_group_is_created_renamed_and_deleted(organization: Organization) -> None:
    group = organization.groups.create(name="Search")
    renamed = organization.groups.update(group.id, name="Research")
    found = organization.groups.retrieve(group.id)
    deleted = organization.groups.delete(group.id)

    assert isinstance(group, Group)
    assert isinstance(renamed, GroupUpdateResponse)
    assert (group.name, group.group_type, group.is_scim_managed) == ("Search", "group", False)
    assert (renamed.name, found.name) == ("Research", "Research")
    assert (deleted.id, deleted.object, deleted.deleted) == (group.id, "group.deleted", True)
    with pytest.raises(NotFoundError):
        organization.groups.retrieve(group.id)


def test_groups_are_listed_in_pages_the_oldest_first(organization: Organization) -> None:
    ids = [organization.groups.create(name=f"g{number}").id for number in range(5)]

    assert [group.id for group in organization.groups.list(limit=2)] == ids
    assert [group.id for group in organization.groups.list(limit=2, order="desc")] == ids[::-1]


def test_members_join_are_listed_and_leave(app: FastAPI, organization: Organization) -> None:
    users = [add_user(app, f"u{number}@example.com") for number in range(3)]
    group = organization.groups.create(name="Search")

    added = [organization.groups.users.create(group.id, user_id=user) for user in [*users, users[0]]]
    members = list(organization.groups.users.list(group.id, limit=2))
    member = organization.groups.users.retrieve(users[1], group_id=group.id)
    removed = organization.groups.users.delete(users[1], group_id=group.id)

    assert all(isinstance(one, UserCreateResponse) for one in added)
    assert (added[3].object, added[3].user_id, added[3].group_id) == ("group.user", users[0], group.id)
    assert [one.id for one in members] == users[::-1]
    assert all(isinstance(one, OrganizationGroupUser) for one in members)
    assert isinstance(member, UserRetrieveResponse)
    assert (member.name, member.email, member.user_type) == ("U1", "u1@example.com", "user")
    assert (removed.object, removed.deleted) == ("group.user.deleted", True)
    assert [one.id for one in organization.groups.users.list(group.id, order="asc")] == [users[0], users[2]]


def test_unknown_user_and_group_are_not_found(app: FastAPI, organization: Organization) -> None:
    user_id = add_user(app, "ada@example.com")
    group = organization.groups.create(name="Search")

    for call in (
        lambda: organization.groups.users.create(group.id, user_id="user_x"),
        lambda: organization.groups.users.create("group_x", user_id=user_id),
        lambda: organization.groups.users.retrieve(user_id, group_id=group.id),
        lambda: organization.groups.users.delete(user_id, group_id=group.id),
    ):
        with pytest.raises(NotFoundError):
            call()


def test_group_with_a_claim_is_filled_by_logins_alone(app: FastAPI, organization: Organization) -> None:
    user_id = add_user(app, "ada@example.com")
    group = organization.groups.create(name="Search", extra_body={"claim": "search-team"})
    log_in(app, "search-team", "other")
    members = [member.id for member in organization.groups.users.list(group.id)]

    with pytest.raises(BadRequestError) as refused:
        organization.groups.users.delete(user_id, group_id=group.id)
    with pytest.raises(BadRequestError) as taken:
        organization.groups.create(name="Another", extra_body={"claim": "search-team"})
    other = organization.groups.create(name="Another")
    with pytest.raises(BadRequestError) as taken_later:
        organization.groups.update(other.id, name="Another", extra_body={"claim": "search-team"})
    log_in(app)

    assert members == [user_id]
    assert refused.value.code == "group_has_claim"
    assert taken.value.code == taken_later.value.code == "claim_in_use"
    assert list(organization.groups.users.list(group.id)) == []


def log_in(app: FastAPI, *groups: str) -> None:
    with app.state.services.db.write() as session:
        accounts.log_in(session, identity_of("ada@example.com", groups), None)


def test_key_adds_no_user_to_a_group_with_more_rights(app: FastAPI, organization: Organization) -> None:
    user_id = add_user(app, "ada@example.com")
    group = organization.groups.create(name="Owners")
    organization.groups.roles.create(group.id, role_id="role-org-owner")
    narrowed = admin_key(app, scopes=["api.groups.write"])

    with admin_client(app, narrowed) as narrow, pytest.raises(PermissionDeniedError) as refused:
        narrow.groups.users.create(group.id, user_id=user_id)

    assert refused.value.code == "missing_scope"
    assert list(organization.groups.users.list(group.id)) == []
