"""The members of a project: users and groups with a role of the project."""

from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from api.admin.invites import Email
from api.admin.lists import AdminPage, admin_page
from api.admin.principals import (
    GroupId,
    ProjectId,
    UserId,
    check_project,
    find_group,
    find_predefined_role,
    find_role,
    find_user,
)
from api.deps import Admin
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.key_fields import check_grant
from api.http.paging import After, Limit20, Order, find
from jobs.db.engine import UNSEEN, execute_and_count
from jobs.errors import InvalidRequest, NotFound
from jobs.security import accounts, roles
from jobs.security.permissions import PREDEFINED
from jobs.security.tables import Account, AccountGroup, RoleAssignment

router = resource("Organization", area="organization.projects", admin=True)

_MEMBERSHIPS = [role.id for role in roles.predefined_roles("project")]
Role = Annotated[str, Field(max_length=16, description="`owner`, `member` or `viewer`.")]


class NewProjectUser(Body):
    """The user who becomes a member of a project, by id or by address."""

    role: Role
    user_id: Annotated[str | None, Field(max_length=64)] = None
    email: Email | None = None


class ProjectUserChange(Body):
    """The new role of a member."""

    role: Role | None = None


class ProjectUser(BaseModel):
    """A user who is a member of a project."""

    id: str
    object: Literal["organization.project.user"] = "organization.project.user"
    email: str
    name: str | None
    role: str
    added_at: int


class ProjectUserDeleted(BaseModel):
    """A user who is no member of a project any more."""

    id: str
    object: Literal["organization.project.user.deleted"] = "organization.project.user.deleted"
    deleted: Literal[True] = True


@router.get("/organization/projects/{project_id}/users")
def list_project_users(
    call: Admin, project_id: ProjectId, after: After = None, limit: Limit20 = 20
) -> AdminPage[ProjectUser]:
    """List the users who are members of a project themselves, and not only by a group."""
    members = select(RoleAssignment.principal_id).where(
        RoleAssignment.project_id == project_id, RoleAssignment.role_id.in_(_MEMBERSHIPS)
    )
    with call.db.read() as session:
        check_project(session, project_id)
        rows, more = find(session, select(Account).where(Account.id.in_(members)), Account, after=after, limit=limit)
        shown = _show_members(session, project_id, rows)
    return admin_page(rows, more, lambda row: shown[row.id])


@router.get("/organization/projects/{project_id}/users/{user_id}")
def retrieve_project_user(call: Admin, project_id: ProjectId, user_id: UserId) -> ProjectUser:
    """Return a member of a project."""
    with call.db.read() as session:
        check_project(session, project_id)
        return _find_member(session, project_id, find_user(session, user_id))


@router.post("/organization/projects/{project_id}/users")
def create_project_user(call: Admin, project_id: ProjectId, body: NewProjectUser) -> ProjectUser:
    """Make a user a member of a project. A member gets the role in place of the one before."""
    with call.db.write() as session:
        check_project(session, project_id, changes=True)
        account = _find_account(session, body)
        return _set_role(session, call, project_id, account, body.role)


@router.post("/organization/projects/{project_id}/users/{user_id}")
def update_project_user(call: Admin, project_id: ProjectId, user_id: UserId, body: ProjectUserChange) -> ProjectUser:
    """Change the role of a member."""
    with call.db.write() as session:
        check_project(session, project_id, changes=True)
        account = find_user(session, user_id)
        member = _find_member(session, project_id, account)
        return _set_role(session, call, project_id, account, body.role) if body.role is not None else member


@router.delete("/organization/projects/{project_id}/users/{user_id}")
def delete_project_user(call: Admin, project_id: ProjectId, user_id: UserId) -> ProjectUserDeleted:
    """Take all roles of a project from a user. Those by groups and on the organization stay."""
    with call.db.write() as session:
        check_project(session, project_id, changes=True)
        find_user(session, user_id)
        _remove(session, call, project_id, user_id, "user")
        return ProjectUserDeleted(id=user_id)


def _find_account(session: Session, body: NewProjectUser) -> Account:
    if (body.user_id is None) == (body.email is None):
        raise InvalidRequest("Give 'user_id' or 'email', and not both.", param="user_id", code="invalid_value")
    if body.user_id is not None:
        return find_user(session, body.user_id)
    account = accounts.find_by_email(session, body.email or "")
    if account is None:
        raise NotFound(f"No user found with the address '{clip(body.email)}'.", param="email")
    return account


def _set_role(session: Session, call: Admin, project_id: str, account: Account, name: str) -> ProjectUser:
    role = find_predefined_role(name, project_id)
    check_grant(call.caller, (), role.permissions)
    if roles.set_predefined_role(session, role, account.id, project_id, call.actor):
        details = {
            "principal_id": account.id,
            "principal_type": "user",
            "resource_id": project_id,
            "resource_type": "api.project",
        }
        call.record(session, "role.assign", role.id, details, project_id=project_id)
    return _find_member(session, project_id, account)


def _find_member(session: Session, project_id: str, account: Account) -> ProjectUser:
    member = _show_members(session, project_id, [account]).get(account.id)
    if member is None:
        raise NotFound(f"No user with id '{clip(account.id)}' is a member of this project.", param="user_id")
    return member


def _show_members(session: Session, project_id: str, rows: Iterable[Account]) -> dict[str, ProjectUser]:
    """Return members of a project as clients see them, by id; rows that are none are left out."""
    by_id = {row.id: row for row in rows}
    assigned = select(RoleAssignment).where(
        RoleAssignment.project_id == project_id,
        RoleAssignment.principal_id.in_(by_id),
        RoleAssignment.role_id.in_(_MEMBERSHIPS),
    )
    return {
        row.principal_id: ProjectUser(
            id=row.principal_id,
            email=by_id[row.principal_id].email,
            name=by_id[row.principal_id].name,
            role=PREDEFINED[row.role_id].name,
            added_at=int(row.created_at),
        )
        for row in session.scalars(assigned)
    }


def _remove(session: Session, call: Admin, project_id: str, principal_id: str, kind: str) -> None:
    """Take all roles of a project from a principal. Raises: NotFound, if it has none."""
    held = (RoleAssignment.project_id == project_id, RoleAssignment.principal_id == principal_id)
    if not execute_and_count(session, delete(RoleAssignment).where(*held), UNSEEN):
        message = f"No {kind} with id '{clip(principal_id)}' is a member of this project."
        raise NotFound(message, param=f"{kind}_id")
    call.record(session, f"project.{kind}.remove", principal_id, project_id=project_id)


class NewProjectGroup(Body):
    """The group that gets a role of a project. `role` is the id of the role."""

    group_id: Annotated[str, Field(max_length=64)]
    role: Annotated[str, Field(max_length=64)]


class ProjectGroup(BaseModel):
    """A group with a role of a project."""

    object: Literal["project.group"] = "project.group"
    project_id: str
    group_id: str
    group_name: str
    group_type: Literal["group"] = "group"
    created_at: int


class ProjectGroupDeleted(BaseModel):
    """A group that has no role of a project any more."""

    object: Literal["project.group.deleted"] = "project.group.deleted"
    deleted: Literal[True] = True


GroupType = Annotated[Literal["group", "tenant_group"], Query(description="All groups are of the type `group`.")]


@router.get("/organization/projects/{project_id}/groups")
def list_project_groups(
    call: Admin, project_id: ProjectId, after: After = None, limit: Limit20 = 20, order: Order = "asc"
) -> AdminPage[ProjectGroup]:
    """List the groups with a role of a project."""
    with call.db.read() as session:
        check_project(session, project_id)
        held = select(RoleAssignment.principal_id).where(RoleAssignment.project_id == project_id)
        rows, more = find(
            session,
            select(AccountGroup).where(AccountGroup.id.in_(held)),
            AccountGroup,
            after=after,
            limit=limit,
            order=order,
        )
        since = dict(session.execute(_first_roles(project_id, [row.id for row in rows])).all())
    return admin_page(rows, more, lambda row: _show_project_group(project_id, row, since[row.id]))


@router.get("/organization/projects/{project_id}/groups/{group_id}")
def retrieve_project_group(
    call: Admin, project_id: ProjectId, group_id: GroupId, group_type: GroupType = "group"
) -> ProjectGroup:
    """Return a group with a role of a project."""
    with call.db.read() as session:
        check_project(session, project_id)
        group = find_group(session, group_id)
        row = session.execute(_first_roles(project_id, [group_id])).first()
        if row is None or group_type != "group":
            raise NotFound(f"No group with id '{clip(group_id)}' is a member of this project.", param="group_id")
        return _show_project_group(project_id, group, row[1])


@router.post("/organization/projects/{project_id}/groups")
def create_project_group(call: Admin, project_id: ProjectId, body: NewProjectGroup) -> ProjectGroup:
    """Give a group a role of a project. It is no error if the group has it."""
    with call.db.write() as session:
        check_project(session, project_id, changes=True)
        group = find_group(session, body.group_id)
        role = find_role(session, body.role, project_id, lock=True)
        check_grant(call.caller, (), role.permissions)
        if roles.assign(session, role.id, group.id, project_id, call.actor):
            details = {
                "principal_id": group.id,
                "principal_type": "group",
                "resource_id": project_id,
                "resource_type": "api.project",
            }
            call.record(session, "role.assign", role.id, details, project_id=project_id)
        row = session.execute(_first_roles(project_id, [group.id])).one()
        return _show_project_group(project_id, group, row[1])


@router.delete("/organization/projects/{project_id}/groups/{group_id}")
def delete_project_group(call: Admin, project_id: ProjectId, group_id: GroupId) -> ProjectGroupDeleted:
    """Take all roles of a project from a group."""
    with call.db.write() as session:
        check_project(session, project_id, changes=True)
        find_group(session, group_id)
        _remove(session, call, project_id, group_id, "group")
        return ProjectGroupDeleted()


def _first_roles(project_id: str, group_ids: Collection[str]) -> Select[str, float]:
    """Return the statement of those groups that have a role of a project, each with the time of its first one."""
    group = RoleAssignment.principal_id
    held = (RoleAssignment.project_id == project_id, group.in_(group_ids))
    return select(group, func.min(RoleAssignment.created_at)).where(*held).group_by(group)


def _show_project_group(project_id: str, group: AccountGroup, since: float) -> ProjectGroup:
    return ProjectGroup(project_id=project_id, group_id=group.id, group_name=group.name, created_at=int(since))
