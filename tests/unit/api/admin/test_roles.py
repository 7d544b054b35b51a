"""Roles and their assignments by the SDK, on the organization and on projects: every method and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from openai import BadRequestError, NotFoundError, PermissionDeniedError
from openai.resources.admin.organization import Organization
from openai.types.admin.organization import Role

from jobs.security import roles
from jobs.security.permissions import PREDEFINED
from jobs.security.roles import permissions_of
from tests.support.organization import add_user, admin_client, admin_key, project_id

READ = ["api.files.read", "api.model.read"]
#: The resource of roles, and the arguments that say where its roles hold.
Place = tuple[Any, dict[str, str]]
#: The resource of assignments, the id of the holder, the arguments as above, and a custom role.
Holder = tuple[Any, str, dict[str, str], str]


@pytest.fixture
def project(app: FastAPI) -> str:
    return project_id(app, "Search")


@pytest.fixture(params=["organization", "project"])
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(organization: Organization, level: str, project: str) -> Place:
    if level == "organization":
        return organization.roles, {}
    return organization.projects.roles, {"project_id": project}


def create(place: Place, name: str = "Reader of files", permissions: Any = READ) -> Any:
    resource, where = place
    return resource.create(*where.values(), role_name=name, permissions=permissions)


def test_role_is_created_changed_and_deleted(place: Place, level: str) -> None:
    resource, where = place
    role = create(place, permissions=[*READ, *READ])
    changed = resource.update(role.id, **where, permissions=["api.files.read"], description="Reads files")
    renamed = resource.update(role.id, **where, role_name="Files")
    found = resource.retrieve(role.id, **where)
    deleted = resource.delete(role.id, **where)

    assert isinstance(role, Role)
    assert (role.name, role.permissions, role.predefined_role) == ("Reader of files", READ, False)
    assert role.resource_type == f"api.{level}"
    assert (changed.permissions, changed.description) == (["api.files.read"], "Reads files")
    assert (renamed.name, renamed.permissions, found) == ("Files", ["api.files.read"], renamed)
    assert (deleted.id, deleted.object, deleted.deleted) == (role.id, "role.deleted", True)
    with pytest.raises(NotFoundError):
        resource.retrieve(role.id, **where)


def test_roles_are_listed_in_pages_with_the_predefined_ones_first(place: Place, level: str) -> None:
    resource, where = place
    ids = [create(place, f"r{number}").id for number in range(3)]
    listed = list(resource.list(*where.values(), limit=2))

    predefined = [role.id for role in PREDEFINED.values() if role.level == level]
    assert [role.id for role in listed] == predefined + ids
    assert [role.predefined_role for role in listed] == [True] * len(predefined) + [False] * 3


@pytest.mark.parametrize(
    ("permissions", "code"),
    [
        (["api.everything.read"], "unknown_permission"),
        (["api.batch.write"], "permission_not_assignable"),
        (["api.roles.write"], "permission_not_assignable"),
        (["api.all.read"], "permission_not_assignable"),
        ([1], "invalid_type"),
        (["api.files.read"] * 1000, "array_above_max_length"),
    ],
)
def test_role_with_wrong_permissions_is_refused(place: Place, permissions: Any, code: str) -> None:
    resource, where = place
    role = create(place)

    with pytest.raises(BadRequestError) as created:
        create(place, "Another", permissions)
    with pytest.raises(BadRequestError) as updated:
        resource.update(role.id, **where, permissions=permissions)

    assert created.value.code == updated.value.code == code
    assert resource.retrieve(role.id, **where).permissions == READ


def test_name_of_another_role_is_refused(place: Place, level: str) -> None:
    resource, where = place
    create(place)
    other = create(place, "Another")

    for name in ("Reader of files", f"{level.title()} owner"):
        with pytest.raises(BadRequestError) as created:
            create(place, name)
        with pytest.raises(BadRequestError) as updated:
            resource.update(other.id, **where, role_name=name)
        assert created.value.code == updated.value.code == "name_in_use"


def test_full_level_takes_no_role_and_lets_others_be_renamed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    resource, where = place
    role = create(place)
    monkeypatch.setattr(roles, "MAX_ROLES", 1)

    with pytest.raises(BadRequestError) as refused:
        create(place, "Another")

    assert refused.value.code == "too_many_roles"
    assert resource.update(role.id, **where, role_name="Another").name == "Another"


def test_predefined_role_is_not_changed(place: Place, level: str) -> None:
    resource, where = place
    role_id = "role-org-reader" if level == "organization" else "role-project-viewer"

    with pytest.raises(BadRequestError) as updated:
        resource.update(role_id, **where, role_name="Mine")
    with pytest.raises(BadRequestError) as deleted:
        resource.delete(role_id, **where)

    assert updated.value.code == deleted.value.code == "predefined_role"


def test_role_of_a_project_is_unknown_to_others(app: FastAPI, organization: Organization, project: str) -> None:
    other = project_id(app, "Other")
    role = create((organization.projects.roles, {"project_id": project}))
    user_id = add_user(app, "ada@example.com")

    for call in (
        lambda: organization.projects.roles.retrieve(role.id, project_id=other),
        lambda: organization.projects.roles.delete(role.id, project_id=other),
        lambda: organization.roles.retrieve(role.id),
        lambda: organization.users.roles.create(user_id, role_id=role.id),
        lambda: organization.projects.users.roles.create(user_id, project_id=other, role_id=role.id),
        lambda: organization.projects.roles.list("proj_x"),
    ):
        with pytest.raises(NotFoundError):
            call()
    with pytest.raises(BadRequestError) as refused:
        organization.projects.roles.list(other, extra_query={"after": role.id})
    assert refused.value.code == "invalid_cursor"


@pytest.fixture(params=["users", "groups"])
def holder(
    request: pytest.FixtureRequest, app: FastAPI, organization: Organization, place: Place, level: str
) -> Holder:
    kind, (_, where) = str(request.param), place
    parent: Any = organization if level == "organization" else organization.projects
    holder_id = add_user(app, "ada@example.com") if kind == "users" else organization.groups.create(name="Search").id
    return getattr(parent, kind).roles, holder_id, where, create(place).id


def test_role_is_assigned_listed_and_removed(holder: Holder, level: str) -> None:
    resource, holder_id, where, role_id = holder
    kind = "user" if holder_id.startswith("user_") else "group"
    named = {f"{kind}_id": holder_id, **where}

    first, second = (resource.create(holder_id, **where, role_id=role_id) for _ in range(2))
    entry = resource.retrieve(role_id, **named)
    listed = [one.id for one in resource.list(holder_id, **where, limit=1)]
    deleted = resource.delete(role_id, **named)

    assert (first.object, first.role.id, first.role.object) == (f"{kind}.role", role_id, "role")
    assert getattr(first, kind).id == holder_id
    assert second == first
    assert (entry.id, entry.permissions, entry.resource_type) == (role_id, READ, f"api.{level}")
    assert [(one.principal_id, one.principal_type) for one in entry.assignment_sources] == [(holder_id, kind)]
    assert entry.created_by.startswith("key:")
    assert role_id in listed
    assert (deleted.object, deleted.deleted) == (f"{kind}.role.deleted", True)
    assert role_id not in [one.id for one in resource.list(holder_id, **where)]
    for call in (resource.retrieve, resource.delete):
        with pytest.raises(NotFoundError):
            call(role_id, **named)


def test_role_by_a_group_names_the_group_as_its_source(app: FastAPI, organization: Organization, project: str) -> None:
    user_id = add_user(app, "ada@example.com")
    group = organization.groups.create(name="Search")
    organization.groups.users.create(group.id, user_id=user_id)
    organization.projects.groups.roles.create(group.id, project_id=project, role_id="role-project-viewer")
    assignments = organization.projects.users.roles
    assignments.create(user_id, project_id=project, role_id="role-project-viewer")

    [both] = list(assignments.list(user_id, project_id=project))
    assignments.delete("role-project-viewer", project_id=project, user_id=user_id)
    [inherited] = list(assignments.list(user_id, project_id=project))

    assert sorted(source.principal_type for source in both.assignment_sources or []) == ["group", "user"]
    assert [source.principal_id for source in inherited.assignment_sources or []] == [group.id]
    with pytest.raises(NotFoundError):
        assignments.delete("role-project-viewer", project_id=project, user_id=user_id)


def test_deleted_role_is_taken_from_its_holder(place: Place, holder: Holder) -> None:
    resource, holder_id, where, role_id = holder
    resource.create(holder_id, **where, role_id=role_id)

    place[0].delete(role_id, **where)

    assert role_id not in [one.id for one in resource.list(holder_id, **where)]


def test_assignment_of_a_deleted_role_is_not_listed(app: FastAPI, place: Place, holder: Holder) -> None:
    resource, holder_id, where, role_id = holder
    with app.state.services.db.write() as session:
        roles.assign(session, "role_gone", holder_id, where.get("project_id", ""), "operator")
    resource.create(holder_id, **where, role_id=role_id)

    listed = [role.id for role in resource.list(holder_id, **where)]

    assert role_id in listed
    assert "role_gone" not in listed


def _create_role(client: Organization, user_id: str) -> Any:
    return client.roles.create(role_name="Mine", permissions=["api.files.write"])


def _widen_role(client: Organization, user_id: str) -> Any:
    role = client.roles.create(role_name="Files", permissions=["api.files.read"])
    return client.roles.update(role.id, permissions=["api.files.read", "api.files.write"])


def _assign_role(client: Organization, user_id: str) -> Any:
    return client.users.roles.create(user_id, role_id="role-org-owner")


@pytest.mark.parametrize("grant", [_create_role, _widen_role, _assign_role])
def test_key_grants_no_permission_that_it_lacks(app: FastAPI, grant: Callable[[Organization, str], Any]) -> None:
    user_id = add_user(app, "ada@example.com")

    narrowed = admin_key(app, scopes=["api.roles.write", "api.files.read"])

    with admin_client(app, narrowed) as narrow, pytest.raises(PermissionDeniedError) as refused:
        grant(narrow, user_id)

    assert refused.value.code == "missing_scope"
    with app.state.services.db.read() as session:
        assert permissions_of(session, user_id, "") == PREDEFINED["role-org-reader"].permissions
