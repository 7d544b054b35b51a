"""The roles of users and groups, on the organization and on each project: assign, list, retrieve, take away."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends
from pydantic import BaseModel, Field
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api.admin.groups import show_group
from api.admin.lists import AdminPage, Limit1000, with_next
from api.admin.principals import (
    InOrganization,
    InProject,
    Principal,
    RoleId,
    check_project,
    find_role,
    group_of,
    user_of,
)
from api.admin.roles import RoleObject, role_fields
from api.admin.users import OrganizationUser, show_user
from api.deps import Admin
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.key_fields import check_grant
from api.http.paging import After, Order, slice_of
from jobs.errors import NotFound
from jobs.security import roles
from jobs.security.permissions import PREDEFINED
from jobs.security.tables import Account, AccountGroup, GroupMember, Role, RoleAssignment

router = resource("Organization", area="roles", admin=True)

Assigned = TypeVar("Assigned")


class NewAssignment(Body):
    """The role to assign."""

    role_id: Annotated[str, Field(max_length=64)]


class AssignedGroup(BaseModel):
    """The group that got a role."""

    id: str
    object: Literal["group"] = "group"
    name: str
    created_at: int
    scim_managed: Literal[False] = False


class GroupRoleAssignment(BaseModel):
    """A role that a group got."""

    object: Literal["group.role"] = "group.role"
    group: AssignedGroup
    role: RoleObject


class UserRoleAssignment(BaseModel):
    """A role that a user got."""

    object: Literal["user.role"] = "user.role"
    user: OrganizationUser
    role: RoleObject


class AssignmentSource(BaseModel):
    """The holder of a role: a user, or a group that the user is in."""

    principal_id: str
    principal_type: Literal["user", "group"]


class AssignedRole(BaseModel):
    """A role that a user or a group has, and by which assignments."""

    id: str
    name: str
    description: str | None
    permissions: list[str]
    predefined_role: bool
    resource_type: str
    created_at: int | None
    updated_at: int | None
    created_by: str | None
    created_by_user_obj: None = None
    metadata: None = None
    assignment_sources: list[AssignmentSource]


class AssignmentDeleted(BaseModel):
    """A role that was taken away."""

    object: Literal["user.role.deleted", "group.role.deleted"]
    deleted: Literal[True] = True


def _serve(path: str, principal_of: Any, location: Any) -> None:
    """Add the routes of the roles of a principal on the organization, or on a project."""
    of = Depends(principal_of)

    @router.get(path)
    def list_role_assignments(
        call: Admin,
        after: After = None,
        limit: Limit1000 = 1000,
        order: Order = "asc",
        principal: Principal = of,
        project_id: str = location,
    ) -> AdminPage[AssignedRole]:
        """List the roles that a user or a group has, those of a user by groups included."""
        with call.db.read() as session:
            check_project(session, project_id)
            principal.find(session)
            assigned = _find_assignment(session, principal, project_id)
        return with_next(slice_of(assigned, lambda role: AssignedRole(**role), after=after, limit=limit, order=order))

    @router.get(f"{path}/{{role_id}}")
    def retrieve_role_assignment(
        call: Admin, role_id: RoleId, principal: Principal = of, project_id: str = location
    ) -> AssignedRole:
        """Return a role that a user or a group has."""
        with call.db.read() as session:
            check_project(session, project_id)
            principal.find(session)
            assigned = {role["id"]: role for role in _find_assignment(session, principal, project_id)}
            return AssignedRole(**_check_assignment(assigned.get(role_id), role_id))

    @router.post(path)
    def create_role_assignment(
        call: Admin, body: NewAssignment, principal: Principal = of, project_id: str = location
    ) -> UserRoleAssignment | GroupRoleAssignment:
        """Assign a role whose permissions the key has itself. It is no error if the user or group has it."""
        with call.db.write() as session:
            check_project(session, project_id, changes=True)
            holder = principal.find(session)
            role = find_role(session, body.role_id, project_id, lock=True)
            check_grant(call.caller, (), role.permissions)
            if roles.assign(session, role.id, principal.id, project_id, call.actor):
                details = _details(principal, project_id)
                call.record(session, "role.assign", role.id, details, project_id=project_id or None)
            return _show_assignment(session, holder, RoleObject(**role_fields(role)))

    @router.delete(f"{path}/{{role_id}}")
    def delete_role_assignment(
        call: Admin, role_id: RoleId, principal: Principal = of, project_id: str = location
    ) -> AssignmentDeleted:
        """Take a role away. One that a user has by a group is taken from the group, or the user from it."""
        with call.db.write() as session, roles.keep_an_owner(session):
            check_project(session, project_id, changes=True)
            principal.find(session)
            _check_assignment(roles.unassign(session, principal.id, project_id, [role_id]), role_id)
            details = _details(principal, project_id)
            call.record(session, "role.unassign", role_id, details, project_id=project_id or None)
            return AssignmentDeleted(object=f"{principal.type}.role.deleted")


for _path, _principal_of, _location in (
    ("/organization/users/{user_id}/roles", user_of, InOrganization),
    ("/organization/groups/{group_id}/roles", group_of, InOrganization),
    ("/projects/{project_id}/users/{user_id}/roles", user_of, InProject),
    ("/projects/{project_id}/groups/{group_id}/roles", group_of, InProject),
):
    _serve(_path, _principal_of, _location)


def _details(principal: Principal, project_id: str) -> dict[str, str]:
    level = roles.level_of(project_id)
    return {
        "principal_id": principal.id,
        "principal_type": principal.type,
        "resource_id": project_id,
        "resource_type": f"api.{level}",
    }


def _check_assignment(assignment: Assigned | None, role_id: str) -> Assigned:
    """Return the assignment. Raises: NotFound, where there is none."""
    if not assignment:
        raise NotFound(f"No role with id '{clip(role_id)}' is assigned here.", param="role_id")
    return assignment


def _find_assignment(session: Session, principal: Principal, project_id: str) -> list[dict[str, Any]]:
    """Return the fields of each role that a principal has, in the order in which the first assignment was made."""
    groups = session.scalars(select(GroupMember.group_id).where(GroupMember.account_id == principal.id)).all()
    rows = session.execute(
        select(RoleAssignment, Role)
        .outerjoin(Role, Role.id == RoleAssignment.role_id)
        .where(RoleAssignment.principal_id.in_([principal.id, *groups]), RoleAssignment.project_id == project_id)
        .where(or_(RoleAssignment.role_id.in_(PREDEFINED), Role.id.is_not(None)))
        .order_by(RoleAssignment.created_at, RoleAssignment.role_id)
    )
    by_role: dict[str, list[tuple[RoleAssignment, Role | None]]] = defaultdict(list)
    for assignment, role in rows:
        by_role[assignment.role_id].append((assignment, role))
    return [_assignment_fields(pairs, principal) for pairs in by_role.values()]


def _assignment_fields(pairs: Iterable[tuple[RoleAssignment, Role | None]], principal: Principal) -> dict[str, Any]:
    assignments = [assignment for assignment, _ in pairs]
    first, role = next(iter(pairs))
    sources = [
        AssignmentSource(
            principal_id=assignment.principal_id,
            principal_type=principal.type if assignment.principal_id == principal.id else "group",
        )
        for assignment in assignments
    ]
    return {
        **role_fields(role or PREDEFINED[first.role_id]),
        "created_at": int(first.created_at),
        "updated_at": int(role.updated_at) if role else None,
        "created_by": first.created_by,
        "assignment_sources": sources,
    }


def _show_assignment(
    session: Session, holder: Account | AccountGroup, role: RoleObject
) -> UserRoleAssignment | GroupRoleAssignment:
    if isinstance(holder, Account):
        return UserRoleAssignment(user=show_user(session, holder), role=role)
    group = show_group(holder)
    return GroupRoleAssignment(
        group=AssignedGroup(id=group.id, name=group.name, created_at=group.created_at), role=role
    )
