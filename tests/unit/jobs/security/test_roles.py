"""The permissions of a principal: the union of its own roles and those of its groups, here and on the organization."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.errors import InvalidRequest
from jobs.security import roles
from jobs.security.permissions import PREDEFINED
from jobs.security.tables import Account, GroupMember, Role

READER = PREDEFINED["role-org-reader"].permissions
VIEWER = PREDEFINED["role-project-viewer"].permissions
CUSTOM = frozenset({"api.files.write"})


@pytest.fixture
def people(db: Database) -> Database:
    """Return a database with a user in a group, and a custom role of a project."""
    with db.write() as session:
        session.add(GroupMember(group_id="group_x", account_id="user_x", created_at=1.0))
        role = {"name": "Files", "permissions": list(CUSTOM), "created_at": 1.0, "updated_at": 1.0}
        session.add(Role(id="role_x", project_id="proj_x", **role))
    return db


@pytest.mark.dialects
@pytest.mark.parametrize(
    ("assigned", "project", "organization"),
    [
        ([], frozenset(), frozenset()),
        ([("user_x", "", "role-org-reader")], READER, READER),
        ([("group_x", "", "role-org-reader")], READER, READER),
        ([("user_x", "proj_x", "role-project-viewer")], VIEWER, frozenset()),
        ([("group_x", "proj_x", "role_x")], CUSTOM, frozenset()),
        ([("user_x", "proj_x", "role-project-viewer"), ("group_x", "proj_x", "role_x")], VIEWER | CUSTOM, frozenset()),
        ([("user_x", "proj_y", "role-project-viewer")], frozenset(), frozenset()),
        ([("user_y", "proj_x", "role-project-viewer"), ("group_y", "", "role-org-reader")], frozenset(), frozenset()),
        ([("user_x", "proj_x", "role_gone")], frozenset(), frozenset()),
    ],
)
def test_permissions_are_the_union_of_all_roles(
    people: Database,
    assigned: Sequence[tuple[str, str, str]],
    project: frozenset[str],
    organization: frozenset[str],
) -> None:
    with people.write() as session:
        for principal, place, role in assigned:
            roles.assign(session, role, principal, place, "operator")
        granted = roles.permissions_of(session, "user_x", "proj_x")
        above = roles.permissions_of(session, "user_x", "")

    assert (granted, above) == (project, organization)


def test_predefined_role_replaces_the_role_before(people: Database) -> None:
    with people.write() as session:
        for name in ("viewer", "owner", "member"):
            roles.set_predefined_role(session, predefined(name), "user_x", "proj_x", "operator")
        roles.assign(session, "role_x", "user_x", "proj_x", "operator")

        assert roles.permissions_of(session, "user_x", "proj_x") == predefined("member").permissions | CUSTOM


def predefined(name: str) -> roles.PredefinedRole:
    role = roles.role_by_name(name, "proj_x")
    assert role is not None
    return role


def test_role_is_assigned_once_and_taken_once(people: Database) -> None:
    def change(session: Session) -> list[bool]:
        first, second = (roles.assign(session, "role_x", "user_x", "proj_x", "operator") for _ in range(2))
        taken, gone = (roles.unassign(session, "user_x", "proj_x", ["role_x"]) for _ in range(2))
        return [first, second, taken, gone]

    with people.write() as session:
        assert change(session) == [True, False, True, False]


@pytest.mark.parametrize(
    ("role_id", "place", "found"),
    [
        ("role-org-owner", "", True),
        ("role-org-owner", "proj_x", False),
        ("role-project-owner", "", False),
        ("role-project-owner", "proj_x", True),
        ("role_x", "proj_x", True),
        ("role_x", "proj_y", False),
        ("role_x", "", False),
        ("role_gone", "proj_x", False),
    ],
)
def test_role_is_found_where_it_can_be_assigned(people: Database, role_id: str, place: str, found: bool) -> None:
    with people.read() as session:
        assert (roles.find_role(session, role_id, place) is not None) == found


@pytest.mark.dialects
def test_role_that_is_being_assigned_is_deleted_afterwards(people: Database) -> None:
    def delete() -> bool:
        with people.write() as session:
            role = roles.find_role(session, "role_x", "proj_x", lock=True)
            session.delete(role)
            return roles.unassign(session, "user_x", "proj_x", ["role_x"])

    with ThreadPoolExecutor(1) as pool:
        with people.write() as session:
            assert roles.find_role(session, "role_x", "proj_x", lock=True) is not None
            roles.assign(session, "role_x", "user_x", "proj_x", "operator")
            deletion = pool.submit(delete)
            with pytest.raises(TimeoutError):
                deletion.result(0.3)
        assert deletion.result(10)


@pytest.mark.dialects
def test_concurrent_removals_keep_an_owner(db: Database) -> None:
    owners = ("user_x", "user_y")
    with db.write() as session:
        for owner in owners:
            session.add(Account(id=owner, email=f"{owner}@example.com", created_at=1.0))
            roles.assign(session, "role-org-owner", owner, "", "operator")

    def take(owner: str) -> None:
        with db.write() as session, roles.keep_an_owner(session):
            roles.unassign(session, owner, "", ["role-org-owner"])

    with ThreadPoolExecutor(1) as pool:
        with db.write() as session, roles.keep_an_owner(session):
            roles.unassign(session, owners[0], "", ["role-org-owner"])
            other = pool.submit(take, owners[1])
            with pytest.raises(TimeoutError):
                other.result(0.3)
        with pytest.raises(InvalidRequest, match="last owner"):
            other.result(10)
