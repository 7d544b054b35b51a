"""The API keys of a project, with the fields of OpenAI's admin API: list, create, revoke."""

from typing import Literal

from pydantic import BaseModel
from sqlalchemy import select

from api.deps import Call
from api.errors import clip
from api.http.bodies import resource
from api.http.fields import when
from api.http.paging import After, Limit20, Order, Page, find, page
from jobs.errors import NotFound
from jobs.security import keys
from jobs.security.tables import ApiKey, Project

router = resource("Security")


class ProjectApiKey(BaseModel):
    """A key of the project. `revoked_at` is null while the key is accepted."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    revoked_at: int | None


class NewProjectApiKey(ProjectApiKey):
    """A key that was just created. `value` is the key itself, which is shown only here."""

    value: str


class ProjectApiKeyDeleted(BaseModel):
    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


@router.get("/api_keys")
def list_api_keys(call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc") -> Page[ProjectApiKey]:
    """List the keys of the project, revoked ones included. The keys themselves are not stored."""
    statement = select(ApiKey).where(ApiKey.project_id == call.project_id)
    with call.db.read() as session:
        rows, more = find(session, statement, ApiKey, after=after, limit=limit, order=order)
    return page(rows, more, _shown)


@router.post("/api_keys")
def create_api_key(call: Call) -> NewProjectApiKey:
    """Create a key of the project. `value` is shown only now.

    An `Idempotency-Key` has no effect, because the answer is not stored.
    """
    with call.db.write() as session:
        project = session.get_one(Project, call.project_id)
        key = keys.create_key(session, project.name, actor=call.actor, limit=keys.LIVE_KEYS)
        row = session.get_one(ApiKey, keys.id_of(key))
        return NewProjectApiKey(value=key, **_shown(row).model_dump())


@router.delete("/api_keys/{api_key_id}")
def revoke_api_key(call: Call, api_key_id: str) -> ProjectApiKeyDeleted:
    """Revoke a key of the project. After five seconds no request with the key is accepted."""
    with call.db.write() as session:
        if not keys.revoke_key(session, api_key_id, actor=call.actor, project_id=call.project_id):
            raise NotFound(f"No live API key found with id '{clip(api_key_id)}'.", param="api_key_id")
    return ProjectApiKeyDeleted(id=api_key_id)


def _shown(key: ApiKey) -> ProjectApiKey:
    return ProjectApiKey(
        id=key.id,
        name=f"key {key.id}",
        redacted_value=keys.redacted(key.id),
        created_at=int(key.created_at),
        revoked_at=when(key.revoked_at),
    )
