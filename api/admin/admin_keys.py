"""The admin keys of the organization. The first one is made by `nightmill keys create --admin`."""

from itertools import islice
from typing import Final, Literal

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.admin.key_ids import KeyId, find_enabled_key, key_page, parse_id, show_id
from api.admin.lists import AdminPage
from api.deps import Admin
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.key_fields import ExpiresIn, Name, end_after
from api.http.paging import After, Limit20, Order, find
from jobs.errors import InvalidRequest
from jobs.security import keys, roles
from jobs.security.permissions import permission_for
from jobs.security.tables import NO_PROJECT, Account, ApiKey

router = resource("Organization", area="management", admin=True)

_MAY_CREATE: Final = permission_for("management", "POST")


class AdminKeyOwner(BaseModel):
    """The owner of an admin key: a user; for a key that the command made, a service account without an id.

    `role` is null for a user with custom roles alone.
    """

    type: Literal["user", "service_account"]
    object: Literal["organization.user", "organization.service_account"]
    id: str | None
    name: str | None
    created_at: int | None
    role: Literal["owner", "reader"] | None


class AdminKeyObject(BaseModel):
    """An admin key. It administers the organization, and opens no project."""

    id: str
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str | None
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: AdminKeyOwner
    scopes: list[str]


class NewAdminKey(AdminKeyObject):
    """An admin key that was just created. `value` is the key itself, which is shown only here."""

    value: str


class AdminKeyDeleted(BaseModel):
    id: str
    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"
    deleted: Literal[True] = True


class CreateAdminKey(Body):
    """A new admin key has the scopes and the owner of the key that creates it, and lives no longer."""

    name: Name
    expires_in_seconds: ExpiresIn = None


@router.post("/organization/admin_api_keys")
def create_admin_key(call: Admin, body: CreateAdminKey) -> NewAdminKey:
    """Create an admin key with the permissions of yours. `value` is shown only now."""
    with call.db.write() as session:
        own = keys.lock_key(session, call.caller.key_id).row
        value = keys.create_admin_key(
            session,
            name=body.name,
            expires_at=end_after(body.expires_in_seconds, own.expires_at),
            scopes=own.scopes or (),
            owner_id=own.owner_id,
            created_by=own.id,
        )
        row = session.get_one(ApiKey, keys.id_of(value))
        return NewAdminKey(value=value, **_show_key(session, row).model_dump())


@router.get("/organization/admin_api_keys")
def list_admin_keys(
    call: Admin, after: After = None, limit: Limit20 = 20, order: Order = "asc"
) -> AdminPage[AdminKeyObject]:
    """List the admin keys that are not deleted."""
    statement = select(ApiKey).where(ApiKey.project_id == NO_PROJECT, ApiKey.revoked_at.is_(None))
    with call.db.read() as session:
        rows, more = find(session, statement, ApiKey, after=after and parse_id(after), limit=limit, order=order)
        return key_page(rows, more, lambda row: _show_key(session, row))


@router.get("/organization/admin_api_keys/{key_id}")
def retrieve_admin_key(call: Admin, key_id: KeyId) -> AdminKeyObject:
    """Return an admin key."""
    with call.db.read() as session:
        return _show_key(session, find_enabled_key(session, NO_PROJECT, key_id, "key_id"))


@router.delete("/organization/admin_api_keys/{key_id}")
def delete_admin_key(call: Admin, key_id: KeyId) -> AdminKeyDeleted:
    """Delete an admin key. After two seconds no request with the key is accepted.

    The last one stays that does not expire and may create others.
    """
    with call.db.write() as session:
        lasting = ApiKey.project_id == NO_PROJECT, ApiKey.revoked_at.is_(None), ApiKey.expires_at.is_(None)
        locked = session.scalars(select(ApiKey.id).where(*lasting).order_by(ApiKey.id).with_for_update()).all()
        find_enabled_key(session, NO_PROJECT, key_id, "key_id")
        creators = (id_ for id_ in locked if _MAY_CREATE in keys.lock_key(session, id_).permissions)
        if list(islice(creators, 2)) == [key_id]:
            message = "This is the last admin key that does not expire and may create others. Create another."
            raise InvalidRequest(message, param="key_id", code="last_admin_key")
        keys.revoke_key(session, key_id, actor=call.actor, project_id=NO_PROJECT)
    return AdminKeyDeleted(id=show_id(key_id))


def _show_key(session: Session, key: ApiKey) -> AdminKeyObject:
    account = session.get(Account, key.owner_id) if key.owner_id else None
    owner = (
        AdminKeyOwner(
            type="user",
            object="organization.user",
            id=account.id,
            name=account.name or account.email,
            created_at=int(account.created_at),
            role=roles.name_of_role(session, account.id, NO_PROJECT),
        )
        if account
        else AdminKeyOwner(
            type="service_account",
            object="organization.service_account",
            id=None,
            name=None,
            created_at=None,
            role="owner",
        )
    )
    return AdminKeyObject(
        id=show_id(key.id),
        name=key.name,
        redacted_value=keys.redact(key),
        created_at=int(key.created_at),
        expires_at=unix_seconds(key.expires_at),
        last_used_at=unix_seconds(key.last_used_at),
        owner=owner,
        scopes=key.scopes or [],
    )
