"""The keys of a project, seen from above. Service accounts get keys; here they are narrowed, ended and deleted."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from api.admin.key_ids import KeyId, find_enabled_key, key_page, parse_id, show_id
from api.admin.lists import AdminPage
from api.admin.queries import find_active_project, find_project
from api.deps import Admin
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.key_fields import ExpiresIn, Scopes, check_grant, end_after
from api.http.paging import After, Limit20, find
from jobs.errors import InvalidRequest
from jobs.security import keys, roles
from jobs.security.tables import NO_PROJECT, Account, ApiKey, GroupMember, Project, RoleAssignment, ServiceAccount

router = resource("Organization", area="organization.projects.api_keys", admin=True)


class KeyServiceAccount(BaseModel):
    """A service account that owns a key."""

    id: str
    name: str
    role: str
    created_at: int


class KeyUser(KeyServiceAccount):
    """A user who owns a key."""

    email: str


class KeyOwner(BaseModel):
    """The owner of a key: a service account or a user; neither for a key of an earlier version."""

    type: Literal["user", "service_account"]
    user: KeyUser | None
    service_account: KeyServiceAccount | None


class OrganizationProjectKey(BaseModel):
    """A key of a project. `owner_project_access` says whether its owner is there and has a role in the project."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner_project_access: Literal["active", "inactive"]
    owner: KeyOwner
    scopes: list[str]


class OrganizationProjectKeyDeleted(BaseModel):
    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class UpdateProjectKey(Body):
    """New scopes, a new lifetime, or both."""

    scopes: Scopes | None = None
    expires_in_seconds: ExpiresIn = None


_GROUPS = select(GroupMember.group_id).where(GroupMember.account_id == ApiKey.owner_id).correlate(ApiKey)
_HAS_ROLE = (
    exists()
    .where(
        or_(RoleAssignment.principal_id == ApiKey.owner_id, RoleAssignment.principal_id.in_(_GROUPS)),
        or_(RoleAssignment.project_id == ApiKey.project_id, RoleAssignment.project_id == NO_PROJECT),
    )
    .correlate(ApiKey)
)
#: The ids of keys whose owner has a role in the key's project. Keys of earlier versions have no owner, and its rights.
_HAVE_ACCESS = keys.join_owner(select(ApiKey.id).join(Project, Project.id == ApiKey.project_id)).where(
    Project.archived_at.is_(None),
    ServiceAccount.deleted_at.is_(None),
    Account.deleted_at.is_(None),
    or_(ApiKey.owner_id.is_(None), ServiceAccount.role != "none", _HAS_ROLE),
)


@router.get("/organization/projects/{project_id}/api_keys")
def list_project_keys(
    call: Admin,
    project_id: str,
    after: After = None,
    limit: Limit20 = 20,
    owner_project_access: Annotated[
        Literal["active", "inactive", "any"], Query(description="By whether the owner still has access.")
    ] = "any",
) -> AdminPage[OrganizationProjectKey]:
    """List the keys of a project that are not deleted, the newest first."""
    statement = select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.revoked_at.is_(None))
    chosen = statement
    if owner_project_access != "any":
        active = _HAVE_ACCESS.where(ApiKey.project_id == project_id)
        chosen = statement.where(
            ApiKey.id.in_(active) if owner_project_access == "active" else ApiKey.id.not_in(active)
        )
    with call.db.read() as session:
        find_project(session, project_id)
        rows, more = find(session, chosen, ApiKey, after=after and parse_id(after), limit=limit, among=statement)
        return key_page(rows, more, lambda row: _show_key(session, row))


@router.get("/organization/projects/{project_id}/api_keys/{api_key_id}")
def retrieve_project_key(call: Admin, project_id: str, api_key_id: KeyId) -> OrganizationProjectKey:
    """Return a key of a project."""
    with call.db.read() as session:
        return _show_key(session, find_enabled_key(session, project_id, api_key_id, "api_key_id"))


@router.post("/organization/projects/{project_id}/api_keys/{api_key_id}")
def update_project_key(
    call: Admin, project_id: str, api_key_id: KeyId, body: UpdateProjectKey
) -> OrganizationProjectKey:
    """Set the scopes of a key or when it expires. Nobody grants a permission that their own key does not have.

    The key of a user ends with the login at the latest.
    """
    if body.scopes is None and body.expires_in_seconds is None:
        raise InvalidRequest("Give 'scopes', 'expires_in_seconds' or both.", code="missing_required_parameter")
    with call.db.write() as session:
        find_active_project(session, project_id, lock=True)
        row = find_enabled_key(session, project_id, api_key_id, "api_key_id")
        current = keys.find_key(session, row.id)
        assert current is not None
        if current.end is not None:
            raise InvalidRequest(
                f"{keys.ENDS[current.end]} It cannot be changed.", param="api_key_id", code=current.end
            )
        if body.scopes is not None:
            check_grant(call.caller, body.scopes, current.owned)
        latest = row.expires_at if session.get(Account, row.owner_id) else None
        expires_at = end_after(body.expires_in_seconds, latest)
        keys.change_key(session, row, actor=call.actor, scopes=body.scopes, expires_at=expires_at)
        return _show_key(session, row)


@router.delete("/organization/projects/{project_id}/api_keys/{api_key_id}")
def delete_project_key(call: Admin, project_id: str, api_key_id: KeyId) -> OrganizationProjectKeyDeleted:
    """Delete a key. After two seconds no request with the key is accepted, and its jobs are cancelled."""
    with call.db.write() as session:
        find_enabled_key(session, project_id, api_key_id, "api_key_id")
        keys.revoke_key(session, api_key_id, actor=call.actor, project_id=project_id)
    return OrganizationProjectKeyDeleted(id=show_id(api_key_id))


def _show_key(session: Session, key: ApiKey) -> OrganizationProjectKey:
    has_access = session.scalar(_HAVE_ACCESS.where(ApiKey.id == key.id)) is not None
    return OrganizationProjectKey(
        id=show_id(key.id),
        name=key.name or f"key {key.id}",
        redacted_value=keys.redact(key),
        created_at=int(key.created_at),
        expires_at=unix_seconds(key.expires_at),
        last_used_at=unix_seconds(key.last_used_at),
        owner_project_access="active" if has_access else "inactive",
        owner=_show_owner(session, key),
        scopes=key.scopes or [],
    )


def _show_owner(session: Session, key: ApiKey) -> KeyOwner:
    if (account := session.get(Account, key.owner_id)) is not None:
        user = KeyUser(
            id=account.id,
            name=account.name or account.email,
            email=account.email,
            role=roles.name_of_role(session, account.id, key.project_id) or "member",
            created_at=int(account.created_at),
        )
        return KeyOwner(type="user", user=user, service_account=None)
    service = session.get(ServiceAccount, key.owner_id)
    shown = service and KeyServiceAccount(
        id=service.id, name=service.name, role=service.role, created_at=int(service.created_at)
    )
    return KeyOwner(type="service_account", user=None, service_account=shown)
