"""The audit log of the organization: all rows, the newest first, in the words of OpenAI where it has any."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, literal, or_, select
from sqlalchemy.orm import Session

from api.admin.key_ids import parse_id, show_id
from api.admin.lists import AdminPage, admin_page, query_values
from api.deps import Admin
from api.errors import clip
from api.http.bodies import resource
from api.http.paging import Before, Limit20, find
from jobs.errors import InvalidRequest
from jobs.ledger import audit
from jobs.ledger.tables import Audit
from jobs.security import accounts
from jobs.security.tables import Account, ApiKey, Project, ServiceAccount

router = resource("Organization", area="management", admin=True)

_PREFIX: Final = "audit_log-"
_ID: Final = re.compile(rf"{_PREFIX}(\d{{1,18}})", re.ASCII)
_MICROSECONDS: Final = 1_000_000
_OWN: Final = "nightmill."

#: OpenAI's type of what the action of a row did. Any other action is a type of its own, with the prefix `nightmill.`.
TYPES: Final = {
    "admin_key.create": "api_key.created",
    "key.create": "api_key.created",
    "key.update": "api_key.updated",
    "key.revoke": "api_key.deleted",
    "group.create": "group.created",
    "group.update": "group.updated",
    "group.delete": "group.deleted",
    "invite.create": "invite.sent",
    "invite.accept": "invite.accepted",
    "invite.delete": "invite.deleted",
    "login.succeed": "login.succeeded",
    "login.fail": "login.failed",
    "logout": "logout.succeeded",
    "project.create": "project.created",
    "project.update": "project.updated",
    "project.allow_external": "project.updated",
    "project.forbid_external": "project.updated",
    "project.allow_media_urls": "project.updated",
    "project.forbid_media_urls": "project.updated",
    "project.archive": "project.archived",
    "rate_limit.update": "rate_limit.updated",
    "role.create": "role.created",
    "role.update": "role.updated",
    "role.delete": "role.deleted",
    "role.assign": "role.assignment.created",
    "role.unassign": "role.assignment.deleted",
    "service_account.create": "service_account.created",
    "service_account.update": "service_account.updated",
    "service_account.delete": "service_account.deleted",
    "user.add": "user.added",
    "user.update": "user.updated",
    "user.delete": "user.deleted",
    "checkpoint.permit": "checkpoint.permission.created",
    "checkpoint.revoke": "checkpoint.permission.deleted",
    "chat_completion.delete": "resource.deleted",
    "conversation.delete": "resource.deleted",
    "drift_monitor.delete": "resource.deleted",
    "eval.delete": "resource.deleted",
    "eval.run.delete": "resource.deleted",
    "file.delete": "resource.deleted",
    "model.delete": "resource.deleted",
    "response.delete": "resource.deleted",
    "schedule.delete": "resource.deleted",
    "vector_store.delete": "resource.deleted",
    "webhook_endpoint.delete": "resource.deleted",
}
#: Where the details of a row stand in the payload of a type: under a name, or beside the id.
_DETAILS: Final = {
    "created": "data", "sent": "data", "added": "data", "updated": "changes_requested",
    "role.created": "", "role.assignment.created": "", "role.assignment.deleted": "", "login.failed": "",
}  # fmt: skip


class AuditActor(BaseModel):
    """The actor of an entry: a key, or a session of a person, of the command or of a process."""

    type: Literal["api_key", "session"]
    api_key: dict[str, Any] | None = None
    session: dict[str, Any] | None = None


class AuditProject(BaseModel):
    """The project that a row is about. `name` is null for a project that is gone."""

    id: str
    name: str | None


class Seal(BaseModel):
    """The row as it is stored: what the hash chain covers."""

    action: str
    actor: str
    target: str
    source: str | None
    destination: str | None
    request_id: str | None
    details: dict[str, Any] | None
    seal: int | None
    hash: str | None


class AuditLogEntry(BaseModel):
    """A row of the audit log. A key named as the `type` holds what was done; `nightmill` holds the row as stored."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    project: AuditProject | None
    actor: AuditActor
    nightmill: Seal


Cursor = Annotated[str | None, Query(max_length=64, description="Id of the last row of the previous page.")]
_TYPES = query_values("event_types", "Only rows of these types.")
_ACTORS = query_values("actor_ids", "Only what these users, service accounts or keys did.")
_ACTOR_EMAILS = query_values("actor_emails", "Only what users with these addresses did.")
_PROJECTS = query_values("project_ids", "Only rows about these projects.")
_RESOURCES = query_values("resource_ids", "Only rows about these objects.")


def _at(bound: str, words: str) -> Any:
    return Query(alias=f"effective_at[{bound}]", ge=0, lt=1 << 40, description=f"{words}, in Unix seconds.")


@router.get("/organization/audit_logs")
def list_organization_audit_logs(
    call: Admin,
    after: Cursor = None,
    before: Before = None,
    limit: Limit20 = 20,
    event_types: list[str] = _TYPES,
    actor_ids: list[str] = _ACTORS,
    actor_emails: list[str] = _ACTOR_EMAILS,
    project_ids: list[str] = _PROJECTS,
    resource_ids: list[str] = _RESOURCES,
    since: Annotated[int | None, _at("gte", "At this time or later")] = None,
    later_than: Annotated[int | None, _at("gt", "In a later second")] = None,
    until: Annotated[int | None, _at("lt", "Before this time")] = None,
    until_with: Annotated[int | None, _at("lte", "In this second or before")] = None,
    tenant_only: Annotated[bool, Query(description="Nothing here belongs to a tenant: true answers no rows.")] = False,
) -> AdminPage[AuditLogEntry]:
    """List the audit log of the whole organization, the newest rows first."""
    statement = select(Audit)
    bounds: tuple[tuple[int | None, Callable[[int], Any]], ...] = (
        (since, lambda at: Audit.at >= at),
        (None if later_than is None else later_than + 1, lambda at: Audit.at >= at),
        (until, lambda at: Audit.at < at),
        (None if until_with is None else until_with + 1, lambda at: Audit.at < at),
    )
    times = [condition(at * _MICROSECONDS) for at, condition in bounds if at is not None]
    statement = statement.where(*times)
    if event_types:
        statement = statement.where(Audit.action.in_(_actions(event_types)))
    if actor_ids or actor_emails:
        statement = statement.where(_has_actor(actor_ids, actor_emails))
    if project_ids:
        statement = statement.where(Audit.project_id.in_(project_ids))
    if resource_ids:
        statement = statement.where(Audit.target.in_(map(parse_id, resource_ids)))
    if tenant_only:
        statement = statement.where(literal(value=False))
    with call.db.read() as session:
        page = _page_by_time if times else _page
        rows, more = page(session, statement, _number(after, "after"), _number(before, "before"), limit)
        entries = list(map(AuditPage(session, rows).entry, rows))
    return admin_page(entries, more, lambda entry: entry)


def _actions(types: Iterable[str]) -> list[str]:
    """Return the actions of the rows of some types."""
    return [action for action, kind in TYPES.items() if kind in types] + [
        name.removeprefix(_OWN) for name in types if name.startswith(_OWN)
    ]


def _has_actor(ids: Sequence[str], emails: Sequence[str]) -> Any:
    """Return the condition of a row to be of a key, of the owner of a key, or of a person."""
    people = select(Account.id).where(Account.email.in_([email.lower() for email in emails]))
    owned = select(literal(audit.actor_of("")).concat(ApiKey.id)).where(
        or_(ApiKey.owner_id.in_(ids), ApiKey.owner_id.in_(people))
    )
    named = [actor for name in ids for actor in (name, audit.actor_of(parse_id(name)), accounts.actor_of(name))]
    logged_in = select(literal(accounts.actor_of("")).concat(Account.id)).where(Account.id.in_(people))
    return or_(Audit.actor.in_(named), Audit.actor.in_(owned), Audit.actor.in_(logged_in))


def _page_by_time(
    session: Session, statement: Select[Audit], after: int | None, before: int | None, limit: int
) -> tuple[Sequence[Audit], bool]:
    """Return what `_page` does, in the order of the index that holds the times: other rows are not read."""
    return find(session, statement, Audit, after=after, before=before, limit=limit, by="at", among=select(Audit))


def _page(
    session: Session, statement: Select[Audit], after: int | None, before: int | None, limit: int
) -> tuple[Sequence[Audit], bool]:
    """Return the rows of one page, the newest first, and whether there are more. With `before` alone it ends there."""
    if after is not None:
        statement = statement.where(Audit.id < after)
    if before is not None:
        statement = statement.where(Audit.id > before)
    backwards = before is not None and after is None
    order = Audit.id.asc() if backwards else Audit.id.desc()
    rows = session.scalars(statement.order_by(order).limit(limit + 1)).all()
    page = list(rows[:limit])
    return page[::-1] if backwards else page, len(rows) > limit


def _number(cursor: str | None, param: str) -> int | None:
    if cursor is None:
        return None
    match = _ID.fullmatch(cursor)
    if match is None:
        raise InvalidRequest(f"No object with id '{clip(cursor)}'.", param=param, code="invalid_cursor")
    return int(match[1])


class AuditPage:
    """The keys, owners and projects that rows name, looked up once for a page."""

    def __init__(self, session: Session, rows: Sequence[Audit]) -> None:
        names = {row.actor for row in rows}
        key_ids = {key_id for name in names if (key_id := audit.key_of(name))}
        owners = dict(session.execute(select(ApiKey.id, ApiKey.owner_id).where(ApiKey.id.in_(key_ids))).all())
        people = {name.removeprefix(accounts.actor_of("")) for name in names} | set(owners.values())
        emails = select(Account.id, Account.email).where(Account.id.in_(people))
        services = select(ServiceAccount.id).where(ServiceAccount.id.in_(owners.values()))
        projects = select(Project.id, Project.name).where(Project.id.in_({row.project_id for row in rows}))
        self._owners = owners
        self._emails = dict(session.execute(emails).all())
        self._services = set(session.scalars(services))
        self._projects = dict(session.execute(projects).all())

    def entry(self, row: Audit) -> AuditLogEntry:
        """Return a row as clients see it."""
        kind = TYPES.get(row.action, f"{_OWN}{row.action}")
        project = row.project_id and AuditProject(id=row.project_id, name=self._projects.get(row.project_id))
        return AuditLogEntry(
            id=f"{_PREFIX}{row.id}",
            type=kind,
            effective_at=row.at // _MICROSECONDS,
            project=project or None,
            actor=self._actor(row.actor),
            nightmill=Seal.model_validate(row, from_attributes=True),
            **{kind: _payload(kind, row)},
        )

    def _actor(self, name: str) -> AuditActor:
        key_id = audit.key_of(name)
        if key_id is None:
            person = name.removeprefix(accounts.actor_of(""))
            user = {"id": person, "email": self._emails.get(person)}
            return AuditActor(type="session", session={"user": user, "ip_address": None})
        owner = self._owners.get(key_id)
        if owner in self._emails:
            held: dict[str, Any] = {"type": "user", "user": {"id": owner, "email": self._emails[owner]}}
        else:
            held = {"type": "service_account", "service_account": {"id": owner} if owner in self._services else None}
        return AuditActor(type="api_key", api_key={"id": show_id(key_id), **held})


def _payload(kind: str, row: Audit) -> dict[str, Any]:
    """Return what was done, in the shape that OpenAI's type has; the details of other types stand beside the id."""
    target = show_id(row.target) if kind.startswith("api_key.") else row.target
    details = row.details or {}
    name = _DETAILS.get(kind, _DETAILS.get(kind.rpartition(".")[2]))
    if kind.startswith(_OWN) or name == "":
        return {**details, "id": target}
    return {"id": target, name: details} if name else {"id": target}
