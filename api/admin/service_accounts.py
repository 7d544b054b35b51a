"""The service accounts of a project: owners of keys that are no persons."""

from typing import Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.admin.key_ids import show_id
from api.admin.lists import AdminPage, admin_page
from api.admin.queries import find_active_project
from api.deps import Admin, AdminContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.key_fields import ExpiresIn, Name, Scopes, check_grant, end_after
from api.http.paging import After, Limit20, find
from jobs.clock import now
from jobs.errors import InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.security import keys, permissions
from jobs.security.tables import ApiKey, ServiceAccount

router = resource("Organization", area="organization.projects.service_accounts", admin=True)


class ServiceAccountKey(BaseModel):
    """A new key of a service account. `value` is the key itself, which is shown only here."""

    id: str
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    name: str
    value: str
    created_at: int
    expires_at: int | None


class ServiceAccountObject(BaseModel):
    """A service account. An account without a role (`none`) may do nothing."""

    id: str
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: str
    created_at: int


class NewServiceAccount(ServiceAccountObject):
    """A service account that was just created, with its first key; null with `create_service_account_only`."""

    api_key: ServiceAccountKey | None


class ServiceAccountDeleted(BaseModel):
    id: str
    object: Literal["organization.project.service_account.deleted"] = "organization.project.service_account.deleted"
    deleted: Literal[True] = True


class CreateServiceAccount(Body):
    """With `create_service_account_only` the account gets no role and no key."""

    name: Name
    create_service_account_only: bool = False
    expires_in_seconds: ExpiresIn = None


class UpdateServiceAccount(Body):
    name: Name | None = None
    role: Literal["member", "owner"] | None = None


class CreateServiceAccountKey(Body):
    name: Name | None = None
    scopes: Scopes = Field(default=[])
    expires_in_seconds: ExpiresIn = None


_BASE = "/organization/projects/{project_id}/service_accounts"
_ONE = f"{_BASE}/{{service_account_id}}"


@router.post(_BASE)
def create_service_account(call: Admin, project_id: str, body: CreateServiceAccount) -> NewServiceAccount:
    """Create a service account, and its first key unless it is not wanted. The key is shown only now."""
    if body.create_service_account_only and body.expires_in_seconds is not None:
        message = "'expires_in_seconds' is of the first key, which 'create_service_account_only' leaves out."
        raise InvalidRequest(message, param="expires_in_seconds", code="invalid_value")
    role = "none" if body.create_service_account_only else "member"
    with call.db.write() as session:
        find_active_project(session, project_id, lock=True)
        account = ServiceAccount(
            id=new_id("svc_acct_"), project_id=project_id, name=body.name, role=role, created_at=now()
        )
        session.add(account)
        call.record(session, "service_account.create", account.id, {"role": role}, project_id=project_id)
        first = CreateServiceAccountKey(name=body.name, expires_in_seconds=body.expires_in_seconds)
        key = None if body.create_service_account_only else _create_key(session, call, account, first)
        return NewServiceAccount(api_key=key, **_show_account(account).model_dump())


@router.get(_BASE)
def list_service_accounts(
    call: Admin, project_id: str, after: After = None, limit: Limit20 = 20
) -> AdminPage[ServiceAccountObject]:
    """List the service accounts of a project, the newest first."""
    statement = select(ServiceAccount).where(
        ServiceAccount.project_id == project_id, ServiceAccount.deleted_at.is_(None)
    )
    with call.db.read() as session:
        find_active_project(session, project_id)
        rows, more = find(session, statement, ServiceAccount, after=after, limit=limit)
    return admin_page(rows, more, _show_account)


@router.get(_ONE)
def retrieve_service_account(call: Admin, project_id: str, service_account_id: str) -> ServiceAccountObject:
    """Return a service account."""
    with call.db.read() as session:
        return _show_account(_find_account(session, project_id, service_account_id))


@router.post(_ONE)
def update_service_account(
    call: Admin, project_id: str, service_account_id: str, body: UpdateServiceAccount
) -> ServiceAccountObject:
    """Set the name or the role of a service account; what is missing stays."""
    with call.db.write() as session:
        account = _find_account(session, project_id, service_account_id, lock=True)
        account.name = body.name or account.name
        if body.role is not None:
            check_grant(call.caller, (), permissions.of_project_role(body.role))
            account.role = body.role
        details = {"name": body.name, "role": body.role}
        call.record(session, "service_account.update", account.id, details, project_id=project_id)
        return _show_account(account)


@router.delete(_ONE)
def delete_service_account(call: Admin, project_id: str, service_account_id: str) -> ServiceAccountDeleted:
    """Delete a service account. Its keys open nothing after two seconds, and their jobs are cancelled."""
    with call.db.write() as session:
        account = _find_account(session, project_id, service_account_id, lock=True)
        account.deleted_at = now()
        call.record(session, "service_account.delete", account.id, project_id=project_id)
        return ServiceAccountDeleted(id=account.id)


@router.post(f"{_ONE}/api_keys")
def create_service_account_key(
    call: Admin, project_id: str, service_account_id: str, body: CreateServiceAccountKey
) -> ServiceAccountKey:
    """Create a key of a service account. `value` is shown only now.

    Nobody grants a permission that their own key does not have.
    """
    with call.db.write() as session:
        account = _find_account(session, project_id, service_account_id, lock=True)
        return _create_key(session, call, account, body)


def _create_key(
    session: Session, call: AdminContext, account: ServiceAccount, body: CreateServiceAccountKey
) -> ServiceAccountKey:
    own = keys.lock_key(session, call.caller.key_id)
    check_grant(own, body.scopes, permissions.of_project_role(account.role))
    value = keys.add_key(
        session,
        account.project_id,
        name=body.name,
        scopes=body.scopes,
        expires_at=end_after(body.expires_in_seconds),
        owner_id=account.id,
        created_by=own.row.id,
    )
    row = session.get_one(ApiKey, keys.id_of(value))
    return ServiceAccountKey(
        id=show_id(row.id),
        name=str(row.name),
        value=value,
        created_at=int(row.created_at),
        expires_at=unix_seconds(row.expires_at),
    )


def _find_account(session: Session, project_id: str, account_id: str, *, lock: bool = False) -> ServiceAccount:
    """Return a service account of an active project. Raises: NotFound, InvalidRequest."""
    find_active_project(session, project_id, lock=lock)
    account = session.get(ServiceAccount, account_id)
    if account is None or account.project_id != project_id or account.deleted_at is not None:
        message = f"No service account found with id '{clip(account_id)}'."
        raise NotFound(message, param="service_account_id")
    return account


def _show_account(account: ServiceAccount) -> ServiceAccountObject:
    return ServiceAccountObject(id=account.id, name=account.name, role=account.role, created_at=int(account.created_at))
