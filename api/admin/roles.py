"""Roles of the organization and of each project: the predefined ones, and those that are made here."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, Limit1000, with_next
from api.admin.principals import InOrganization, InProject, RoleId, check_project, find_role
from api.deps import Admin
from api.http.bodies import Body, Many, resource
from api.http.key_fields import check_grant
from api.http.paging import After, Order, slice_of
from jobs.clock import now
from jobs.db.engine import UNSEEN, flush_unique
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.security import roles
from jobs.security.permissions import ALL, CUSTOM, PredefinedRole, check_scopes
from jobs.security.tables import Role, RoleAssignment

router = resource("Organization", area="roles", admin=True)

Name = Annotated[str, Field(min_length=1, max_length=255)]
Permissions = Annotated[Many[Annotated[str, Field(max_length=64)]], Field(max_length=len(ALL))]
Description = Annotated[str | None, Field(max_length=1000)]


class NewRole(Body):
    """A role that does not exist yet."""

    role_name: Name
    permissions: Permissions
    description: Description = None


class RoleChange(Body):
    """The changes of a role. What is null or missing stays as it is."""

    role_name: Name | None = None
    permissions: Permissions | None = None
    description: Description = None


class RoleObject(BaseModel):
    """A role. `resource_type` says whether it is assigned on the organization or on a project."""

    id: str
    object: Literal["role"] = "role"
    name: str
    description: str | None
    permissions: list[str]
    predefined_role: bool
    resource_type: Literal["api.organization", "api.project"]


class RoleDeleted(BaseModel):
    """A role that was deleted."""

    id: str
    object: Literal["role.deleted"] = "role.deleted"
    deleted: Literal[True] = True


def _serve(path: str, location: Any) -> None:
    """Add the routes of the roles of the organization, or of a project."""

    @router.get(path)
    def list_roles(
        call: Admin, after: After = None, limit: Limit1000 = 1000, order: Order = "asc", project_id: str = location
    ) -> AdminPage[RoleObject]:
        """List the roles: the predefined ones first, then the others by `created_at`."""
        with call.db.read() as session:
            check_project(session, project_id)
            custom = session.scalars(
                select(Role).where(Role.project_id == project_id).order_by(Role.created_at, Role.id)
            ).all()
        predefined = roles.predefined_roles(roles.level_of(project_id))
        known = [*map(role_fields, predefined), *map(role_fields, custom)]
        return with_next(slice_of(known, lambda role: RoleObject(**role), after=after, limit=limit, order=order))

    @router.get(f"{path}/{{role_id}}")
    def retrieve_role(call: Admin, role_id: RoleId, project_id: str = location) -> RoleObject:
        """Return a role."""
        with call.db.read() as session:
            check_project(session, project_id)
            return RoleObject(**role_fields(find_role(session, role_id, project_id)))

    @router.post(path)
    def create_role(call: Admin, body: NewRole, project_id: str = location) -> RoleObject:
        """Create a role of permissions that the key has itself."""
        with call.db.write() as session:
            check_project(session, project_id, changes=True)
            _check_room(session, project_id)
            permissions = _check_permissions(body.permissions, project_id)
            check_grant(call.caller, (), permissions)
            at = now()
            role = Role(
                id=new_id("role_"),
                project_id=project_id,
                name=body.role_name,
                description=body.description,
                permissions=permissions,
                created_at=at,
                updated_at=at,
            )
            session.add(role)
            _write_role(session, role)
            details = {"role_name": role.name, "permissions": permissions}
            call.record(session, "role.create", role.id, details, project_id=project_id or None)
            return RoleObject(**role_fields(role))

    @router.post(f"{path}/{{role_id}}")
    def update_role(call: Admin, role_id: RoleId, body: RoleChange, project_id: str = location) -> RoleObject:
        """Change a role that is not predefined. Who has it gets or loses the permissions within two seconds."""
        with call.db.write() as session:
            check_project(session, project_id, changes=True)
            role = _find_custom(session, role_id, project_id)
            before = set(role.permissions)
            after = set(before if body.permissions is None else _check_permissions(body.permissions, project_id))
            check_grant(call.caller, (), after - before)
            role.name = body.role_name or role.name
            role.description = body.description if body.description is not None else role.description
            role.permissions, role.updated_at = sorted(after), now()
            _write_role(session, role)
            details = {
                "role_name": role.name,
                "permissions_added": sorted(after - before),
                "permissions_removed": sorted(before - after),
            }
            call.record(session, "role.update", role_id, details, project_id=project_id or None)
            return RoleObject(**role_fields(role))

    @router.delete(f"{path}/{{role_id}}")
    def delete_role(call: Admin, role_id: RoleId, project_id: str = location) -> RoleDeleted:
        """Delete a role that is not predefined, and take it from all who have it."""
        with call.db.write() as session:
            check_project(session, project_id, changes=True)
            session.delete(_find_custom(session, role_id, project_id))
            held = RoleAssignment.role_id == role_id
            session.execute(delete(RoleAssignment).where(held), execution_options=UNSEEN)
            call.record(session, "role.delete", role_id, project_id=project_id or None)
            return RoleDeleted(id=role_id)


for _path, _location in (("/organization/roles", InOrganization), ("/projects/{project_id}/roles", InProject)):
    _serve(_path, _location)


def _write_role(session: Session, role: Role) -> None:
    """Write a role. Raises: InvalidRequest, where another one of its level and project has its name."""
    refusal = InvalidRequest("Another role has this name.", param="role_name", code="name_in_use")
    if role.name in [other.title for other in roles.predefined_roles(roles.level_of(role.project_id))]:
        raise refusal
    flush_unique(session, refusal)


def _check_room(session: Session, project_id: str) -> None:
    """Check that another role may be created. Raises: InvalidRequest."""
    of_project = Role.project_id == project_id
    if (session.scalar(select(func.count()).select_from(Role).where(of_project)) or 0) >= roles.MAX_ROLES:
        raise InvalidRequest(f"There are {roles.MAX_ROLES} roles, which is the most.", code="too_many_roles")


def _check_permissions(permissions: Collection[str], project_id: str) -> list[str]:
    """Return permissions in order. Raises: InvalidRequest, for one that a custom role cannot hold."""
    check_scopes(permissions, "permissions")
    level = roles.level_of(project_id)
    refused = sorted(set(permissions) - CUSTOM[level])
    if refused:
        message = f"A custom role of the {level} cannot hold '{refused[0]}'."
        raise InvalidRequest(message, param="permissions", code="permission_not_assignable")
    return sorted(set(permissions))


def _find_custom(session: Session, role_id: str, project_id: str) -> Role:
    role = find_role(session, role_id, project_id, lock=True)
    if isinstance(role, PredefinedRole):
        raise InvalidRequest("A predefined role cannot be changed.", param="role_id", code="predefined_role")
    return role


def role_fields(role: Role | PredefinedRole) -> dict[str, Any]:
    """Return the fields of a role that clients see."""
    if isinstance(role, PredefinedRole):
        name, description, level = role.title, None, role.level
    else:
        name, description, level = role.name, role.description, roles.level_of(role.project_id)
    return {
        "id": role.id,
        "name": name,
        "description": description,
        "permissions": sorted(role.permissions),
        "predefined_role": isinstance(role, PredefinedRole),
        "resource_type": f"api.{level}",
    }
