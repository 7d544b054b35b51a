"""The API keys of a project, with the fields of OpenAI's admin API: list, retrieve, create, revoke."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import unix_seconds
from api.http.key_fields import ExpiresIn, Name, Scopes, check_grant, end_after
from api.http.paging import After, Limit20, Order, Page, find, page
from jobs.errors import NotFound, PermissionDenied
from jobs.security import keys
from jobs.security.tables import ApiKey

router = resource("Security", area="organization.projects.api_keys")


class ProjectApiKey(BaseModel):
    """A key of the project. `revoked_at` is null unless it was revoked; null in `expires_at`: it does not expire.

    `scopes` are the permissions that the key is narrowed to; empty: all of its owner. A key that manages keys creates
    keys of the project and revokes them. `created_by` is the id of the key that created this one; null: the command.
    """

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    manages_keys: bool
    created_by: str | None
    scopes: list[str]
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    revoked_at: int | None


class NewProjectApiKey(ProjectApiKey):
    """A key that was just created. `value` is the key itself, which is shown only here."""

    value: str


class ProjectApiKeyDeleted(BaseModel):
    """A key that was revoked.

    `created_keys` are the keys that it had created, itself or through others, and that were live: with `cascade` they
    are revoked too.
    """

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True
    created_keys: list[str]


@router.get("/api_keys")
def list_api_keys(call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc") -> Page[ProjectApiKey]:
    """List the keys of the project, revoked ones included. The keys themselves are not stored."""
    statement = select(ApiKey).where(ApiKey.project_id == call.project_id)
    with call.db.read() as session:
        rows, more = find(session, statement, ApiKey, after=after, limit=limit, order=order)
    return page(rows, more, _show_key)


@router.get("/api_keys/{api_key_id}")
def retrieve_api_key(call: Call, api_key_id: str) -> ProjectApiKey:
    """Return a key of the project, also one that is revoked."""
    with call.db.read() as session:
        row = session.get(ApiKey, api_key_id)
        if row is None or row.project_id != call.project_id:
            raise _not_found(api_key_id)
        return _show_key(row)


class CreateProjectApiKey(Body):
    """Without `scopes` the new key has those of the key that creates it."""

    name: Name | None = None
    scopes: Scopes = Field(default=[])
    expires_in_seconds: ExpiresIn = None


@router.post("/api_keys")
def create_api_key(call: Call, body: CreateProjectApiKey | None = None) -> NewProjectApiKey:
    """Create a key of the project, which manages no keys. `value` is shown only now. It takes a key that manages keys.

    The new key has the owner of yours, no permission that yours does not have, and no longer life. An `Idempotency-Key`
    has no effect, because the answer is not stored.
    """
    body = body or CreateProjectApiKey()
    with call.db.write() as session:
        own = _check_manages(session, call)
        scopes = body.scopes or own.row.scopes or ()
        check_grant(own, scopes, own.owned)
        key = keys.add_key(
            session,
            call.project_id,
            name=body.name,
            scopes=scopes,
            expires_at=end_after(body.expires_in_seconds, own.row.expires_at),
            owner_id=own.row.owner_id,
            created_by=own.row.id,
            limit=keys.LIVE_KEYS,
        )
        row = session.get_one(ApiKey, keys.id_of(key))
        return NewProjectApiKey(value=key, **_show_key(row).model_dump())


@router.delete("/api_keys/{api_key_id}")
def revoke_api_key(
    call: Call,
    api_key_id: str,
    cascade: Annotated[
        bool, Query(description="Revoke the keys too that it created, itself or through others.")
    ] = False,
) -> ProjectApiKeyDeleted:
    """Revoke a key of the project. After two seconds no request with the key is accepted, and its jobs are cancelled.

    A key that manages no keys may revoke itself alone. With `cascade` the key may have been revoked before.
    """
    with call.db.write() as session:
        if cascade or api_key_id != call.caller.key_id:
            _check_manages(session, call)
        created = keys.revoke_key(session, api_key_id, actor=call.actor, project_id=call.project_id, cascade=cascade)
    if created is None:
        raise _not_found(api_key_id, live=True)
    return ProjectApiKeyDeleted(id=api_key_id, created_keys=created)


def _check_manages(session: Session, call: CallContext) -> keys.FoundKey:
    """Return the caller's key, which manages keys, and keep the project's keys as they are in this transaction.

    Raises: PermissionDenied, Unauthenticated.
    """
    keys.lock_keys(session, call.project_id)
    current = keys.lock_key(session, call.caller.key_id)
    if not current.row.manages_keys:
        message = (
            "You have insufficient permissions for this operation: this key does not manage keys. "
            "`nightmill keys create --project NAME --manage` makes one that does."
        )
        raise PermissionDenied(message, code="missing_scope")
    return current


def _not_found(key_id: str, *, live: bool = False) -> NotFound:
    return NotFound(f"No {'live ' if live else ''}API key found with id '{clip(key_id)}'.", param="api_key_id")


def _show_key(key: ApiKey) -> ProjectApiKey:
    return ProjectApiKey(
        id=key.id,
        name=key.name or f"key {key.id}",
        redacted_value=keys.redact(key),
        manages_keys=key.manages_keys,
        created_by=key.created_by,
        scopes=key.scopes or [],
        created_at=int(key.created_at),
        expires_at=unix_seconds(key.expires_at),
        last_used_at=unix_seconds(key.last_used_at),
        revoked_at=unix_seconds(key.revoked_at),
    )
