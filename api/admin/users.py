"""The users of the organization: list, retrieve, change their roles, remove. Invites make them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.admin.lists import AdminPage, admin_page, query_values
from api.admin.principals import UserId, find_predefined_role, find_role, find_user
from api.deps import Admin
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.key_fields import check_grant
from api.http.paging import After, Limit20, find
from jobs.errors import InvalidRequest
from jobs.security import accounts, roles
from jobs.security.permissions import PREDEFINED, PredefinedRole
from jobs.security.tables import NO_PROJECT, Account, ApiKey, Project, Role, RoleAssignment

router = resource("Organization", area="management", admin=True)

_EMAILS = query_values("emails", "Only users with these addresses.")


class Membership(BaseModel):
    """A project that a user is a member of."""

    id: str
    name: str
    role: str


class Memberships(BaseModel):
    """The projects that a user is a member of. Those that the user has by a group are not among them."""

    object: Literal["list"] = "list"
    data: list[Membership]


class UserDetails(BaseModel):
    """The person of a user."""

    id: str
    object: Literal["user"] = "user"
    email: str
    name: str | None
    picture: None = None
    enabled: Literal[True] = True
    banned: Literal[False] = False
    banned_at: None = None


class OrganizationUser(BaseModel):
    """A user of the organization. `role` is null where only projects or groups give the user a role."""

    id: str
    object: Literal["organization.user"] = "organization.user"
    added_at: int
    created: int
    email: str
    name: str | None
    role: Literal["owner", "reader"] | None
    api_key_last_used_at: int | None
    is_default: Literal[False] = False
    is_service_account: Literal[False] = False
    is_scim_managed: Literal[False] = False
    is_scale_tier_authorized_purchaser: Literal[False] = False
    developer_persona: None = None
    technical_level: None = None
    projects: Memberships
    user: UserDetails


class OrganizationUserDeleted(BaseModel):
    """A user who was removed."""

    id: str
    object: Literal["organization.user.deleted"] = "organization.user.deleted"
    deleted: Literal[True] = True


class UserChange(Body):
    """The new role of a user: `owner` or `reader`, or the id of a role of the organization."""

    role: Annotated[str | None, Field(max_length=16)] = None
    role_id: Annotated[str | None, Field(max_length=64)] = None
    developer_persona: None = None
    technical_level: None = None


@router.get("/organization/users")
def list_users(
    call: Admin,
    after: After = None,
    limit: Limit20 = 20,
    emails: list[str] = _EMAILS,
) -> AdminPage[OrganizationUser]:
    """List the users of the organization, the newest first."""
    statement = select(Account).where(Account.deleted_at.is_(None))
    if emails:
        statement = statement.where(Account.email.in_([email.lower() for email in emails]))
    with call.db.read() as session:
        rows, more = find(session, statement, Account, after=after, limit=limit)
        shown = show_users(session, rows)
    return admin_page(rows, more, lambda row: shown[row.id])


@router.get("/organization/users/{user_id}")
def retrieve_user(call: Admin, user_id: UserId) -> OrganizationUser:
    """Return a user of the organization."""
    with call.db.read() as session:
        return show_user(session, find_user(session, user_id))


@router.post("/organization/users/{user_id}")
def update_user(call: Admin, user_id: UserId, body: UserChange) -> OrganizationUser:
    """Change the role of a user in the organization. A predefined role takes the place of the one before.

    The last owner of the organization stays an owner.
    """
    with call.db.write() as session, roles.keep_an_owner(session):
        account = find_user(session, user_id)
        if body.role is not None and body.role_id is not None:
            raise InvalidRequest("Give 'role' or 'role_id', not both.", param="role_id", code="invalid_value")
        role: Role | PredefinedRole | None = None
        if body.role is not None:
            role = find_predefined_role(body.role, NO_PROJECT)
        elif body.role_id is not None:
            role = find_role(session, body.role_id, NO_PROJECT, lock=True)
        if role is not None:
            check_grant(call.caller, (), role.permissions)
            if isinstance(role, PredefinedRole):
                is_new = roles.set_predefined_role(session, role, user_id, NO_PROJECT, call.actor)
            else:
                is_new = roles.assign(session, role.id, user_id, NO_PROJECT, call.actor)
            if is_new:
                call.record(session, "user.update", user_id, {"role": role.name})
        return show_user(session, account)


@router.delete("/organization/users/{user_id}")
def delete_user(call: Admin, user_id: UserId) -> OrganizationUserDeleted:
    """Remove a user from the organization, with all roles and memberships. The user's keys are revoked.

    The last owner of the organization stays.
    """
    with call.db.write() as session, roles.keep_an_owner(session):
        accounts.remove(session, find_user(session, user_id), actor=call.actor, request_id=call.request_id)
        return OrganizationUserDeleted(id=user_id)


def show_user(session: Session, account: Account) -> OrganizationUser:
    """Return a user as clients see it."""
    return show_users(session, [account])[account.id]


def show_users(session: Session, rows: Sequence[Account]) -> dict[str, OrganizationUser]:
    """Return users as clients see them, by id."""
    ids = [row.id for row in rows]
    last_uses = select(ApiKey.owner_id, func.max(ApiKey.last_used_at)).where(ApiKey.owner_id.in_(ids))
    last_use: dict[str | None, float | None] = dict(session.execute(last_uses.group_by(ApiKey.owner_id)).all())
    of_project = Project.id == RoleAssignment.project_id
    assigned = (
        select(RoleAssignment.principal_id, RoleAssignment.role_id, Project.id, Project.name)
        .outerjoin(Project, of_project)
        .where(RoleAssignment.principal_id.in_(ids), RoleAssignment.role_id.in_(list(PREDEFINED)))
        .order_by(Project.name)
    )
    role_names: dict[str, Any] = {}
    memberships: dict[str, list[Membership]] = defaultdict(list)
    for user_id, role_id, project_id, project in session.execute(assigned):
        role = PREDEFINED[role_id]
        if role.level == "organization":
            role_names[user_id] = role.name
        else:
            memberships[user_id].append(Membership(id=project_id, name=project, role=role.name))
    return {
        row.id: OrganizationUser(
            id=row.id,
            added_at=int(row.created_at),
            created=int(row.created_at),
            email=row.email,
            name=row.name,
            role=role_names.get(row.id),
            api_key_last_used_at=unix_seconds(last_use.get(row.id)),
            projects=Memberships(data=memberships[row.id]),
            user=UserDetails(id=row.id, email=row.email, name=row.name),
        )
        for row in rows
    }
