"""Users and groups of projects by the SDK: every method, its classes, and what is refused."""

import pytest
from fastapi import FastAPI
from openai import BadRequestError, NotFoundError
from openai.resources.admin.organization import Organization
from openai.types.admin.organization.projects import ProjectGroup, ProjectUser
from sqlalchemy import select, update

from jobs.ledger.tables import Audit
from jobs.security.tables import Account, Project
from tests.support.organization import add_user, project_id


@pytest.fixture
def project(app: FastAPI) -> str:
    return project_id(app, "Search")


def test_user_joins_changes_role_and_leaves(app: FastAPI, organization: Organization, project: str) -> None:
    user_id = add_user(app, "ada@example.com")
    users = organization.projects.users

    member = users.create(project, role="member", email="Ada@example.com")
    owner = users.update(user_id, project_id=project, role="owner")
    same = users.update(user_id, project_id=project)
    found = users.retrieve(user_id, project_id=project)
    deleted = users.delete(user_id, project_id=project)

    assert isinstance(member, ProjectUser)
    assert (member.id, member.object, member.role) == (user_id, "organization.project.user", "member")
    assert (member.email, member.name) == ("ada@example.com", "Ada")
    assert (owner.role, same, found) == ("owner", owner, owner)
    assert (deleted.id, deleted.object, deleted.deleted) == (user_id, "organization.project.user.deleted", True)
    for call in (users.retrieve, users.delete):
        with pytest.raises(NotFoundError):
            call(user_id, project_id=project)


def test_change_that_changes_nothing_is_not_recorded(app: FastAPI, organization: Organization, project: str) -> None:
    user_id, group = add_user(app, "ada@example.com"), organization.groups.create(name="Search")
    for _ in range(2):
        organization.groups.users.create(group.id, user_id=user_id)
        organization.projects.users.create(project, role="member", user_id=user_id)
        organization.projects.groups.create(project, group_id=group.id, role="role-project-viewer")
        organization.users.update(user_id, role="owner")

    with app.state.services.db.read() as session:
        recorded = session.scalars(select(Audit.action).where(Audit.actor.like("key:%")).order_by(Audit.id)).all()

    assert recorded == ["group.create", "group.member.add", "role.assign", "role.assign", "user.update"]


def test_members_are_listed_in_pages_of_their_project_alone(
    app: FastAPI, organization: Organization, project: str
) -> None:
    ids = [add_user(app, f"u{number}@example.com", projects=[{"id": project, "role": "member"}]) for number in range(3)]
    other = project_id(app, "Other")
    stranger = add_user(app, "eva@example.com", projects=[{"id": other, "role": "member"}])

    assert [user.id for user in organization.projects.users.list(project, limit=2)] == ids[::-1]
    with pytest.raises(BadRequestError) as refused:
        organization.projects.users.list(project, after=stranger)
    assert refused.value.code == "invalid_cursor"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"role": "member"}, 400),
        ({"role": "member", "user_id": "user_x", "email": "ada@example.com"}, 400),
        ({"role": "king", "email": "ada@example.com"}, 400),
        ({"role": "member", "user_id": "user_x"}, 404),
        ({"role": "member", "email": "nobody@example.com"}, 404),
    ],
)
def test_wrong_member_is_refused(
    app: FastAPI, organization: Organization, project: str, body: dict[str, object], status: int
) -> None:
    add_user(app, "ada@example.com")

    with pytest.raises((BadRequestError, NotFoundError)) as refused:
        organization.projects.users.create(project, role="member", extra_body=body)

    assert refused.value.status_code == status
    assert list(organization.projects.users.list(project)) == []


def test_address_of_several_users_makes_none_a_member(app: FastAPI, organization: Organization, project: str) -> None:
    add_user(app, "ada@example.com")
    other = add_user(app, "eva@example.com")
    with app.state.services.db.write() as session:
        session.get_one(Account, other).email = "ada@example.com"

    with pytest.raises(BadRequestError) as refused:
        organization.projects.users.create(project, role="member", email="ada@example.com")

    assert refused.value.code == "ambiguous_email"
    assert list(organization.projects.users.list(project)) == []


def test_archived_project_takes_no_member(app: FastAPI, organization: Organization, project: str) -> None:
    user_id = add_user(app, "ada@example.com")
    with app.state.services.db.write() as session:
        session.execute(update(Project).where(Project.id == project).values(archived_at=1.0))

    with pytest.raises(BadRequestError) as refused:
        organization.projects.users.create(project, role="member", user_id=user_id)

    assert refused.value.code == "project_archived"


def test_group_joins_a_project_and_leaves(organization: Organization, project: str) -> None:
    groups = organization.projects.groups
    made = [organization.groups.create(name=name) for name in ("a", "b", "c")]

    joined = [groups.create(project, group_id=group.id, role="role-project-member") for group in made]
    listed = [group.group_id for group in groups.list(project, limit=2)]
    found = groups.retrieve(made[1].id, project_id=project)
    deleted = groups.delete(made[1].id, project_id=project)

    assert all(isinstance(group, ProjectGroup) for group in joined)
    assert (found.object, found.project_id, found.group_name) == ("project.group", project, "b")
    assert found == joined[1]
    assert listed == [group.id for group in made]
    assert (deleted.object, deleted.deleted) == ("project.group.deleted", True)
    for call in (
        lambda: groups.retrieve(made[1].id, project_id=project),
        lambda: groups.retrieve(made[0].id, project_id=project, group_type="tenant_group"),
        lambda: groups.delete(made[1].id, project_id=project),
        lambda: groups.create(project, group_id=made[1].id, role="role-org-owner"),
    ):
        with pytest.raises(NotFoundError):
            call()
