"""The audit log of a project: the transitions of its jobs, and the calls that changed something."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from api.deps import Call
from api.errors import clip
from api.http.bodies import resource
from api.http.paging import Limit20, Page
from jobs.db.base import hide_from_index, matching
from jobs.errors import InvalidRequest
from jobs.ledger.tables import Audit

router = resource("Security", area="audit_logs")

_PREFIX: Final = "audit_log-"
_ID: Final = re.compile(rf"{_PREFIX}(\d{{1,18}})", re.ASCII)
_MICROSECONDS: Final = 1_000_000


class AuditLog(BaseModel):
    """A row of the audit log: `actor` did `type` to `target`. A job's transition has a `source` and a `destination`.

    `effective_at` is in seconds; `sealed` says whether the row is part of the hash chain by now.
    """

    id: str
    object: Literal["audit_log"] = "audit_log"
    type: str
    effective_at: int
    actor: str
    target: str
    source: str | None
    destination: str | None
    request_id: str | None
    details: dict[str, Any] | None
    sealed: bool


@router.get("/audit_logs")
def list_audit_logs(
    call: Call,
    after: Annotated[str | None, Query(max_length=64, description="Id of the last row of the previous page.")] = None,
    limit: Limit20 = 20,
    target: Annotated[
        str | None, Query(max_length=128, description="Only rows about this object, such as a job or a key.")
    ] = None,
    actor: Annotated[
        str | None, Query(max_length=96, description="Only what this actor did, such as `key:` and the id of a key.")
    ] = None,
    action: Annotated[
        str | None, Query(alias="type", max_length=64, description="Only rows of this type, such as `key.revoke`.")
    ] = None,
    since: Annotated[int, Query(ge=0, lt=1 << 40, description="At this time or later, in Unix seconds.")] = 0,
    until: Annotated[int | None, Query(ge=0, lt=1 << 40, description="Before this time.")] = None,
) -> Page[AuditLog]:
    """List the audit log of the project, the newest rows first."""
    statement = select_rows(call.project_id, target=target, actor=actor, action=action)
    statement = statement.where(Audit.at >= since * _MICROSECONDS) if since else statement
    if until is not None:
        statement = statement.where(Audit.at < until * _MICROSECONDS)
    with call.db.read() as session:
        if after is not None:
            statement = statement.where(tuple_(Audit.at, Audit.id) < _position(session, call.project_id, after))
        rows = session.scalars(statement.order_by(Audit.at.desc(), Audit.id.desc()).limit(limit + 1)).all()
    return _page(rows[:limit], more=len(rows) > limit)


def select_rows(project_id: str, **values: str | None) -> Select[Audit]:
    """Return the statement of the project's rows with the values, by the index of the first of them that is given."""
    equal = {name: value for name, value in values.items() if value is not None} | {"project_id": project_id}
    first = next(iter(equal))
    indexed = [first] if first == "target" else [first, "project_id"]
    return select(Audit).where(*matching(Audit, equal, indexed=indexed))


def _position(session: Session, project_id: str, after: str) -> tuple[int, int]:
    """Return the time and the number of the row that a page follows. Raises InvalidRequest."""
    match = _ID.fullmatch(after)
    number = int(match[1]) if match else 0
    at = session.scalar(select(Audit.at).where(Audit.id == number, hide_from_index(Audit.project_id) == project_id))
    if at is None:
        raise InvalidRequest(f"No object with id '{clip(after)}'.", param="after", code="invalid_cursor")
    return at, number


def _page(rows: Sequence[Audit], *, more: bool) -> Page[AuditLog]:
    data = [_show_entry(row) for row in rows]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return Page(data=data, first_id=first, last_id=last, has_more=more)


def _show_entry(row: Audit) -> AuditLog:
    return AuditLog(
        id=f"{_PREFIX}{row.id}",
        type=row.action,
        effective_at=row.at // _MICROSECONDS,
        actor=row.actor,
        target=row.target,
        source=row.source,
        destination=row.destination,
        request_id=row.request_id,
        details=row.details,
        sealed=row.seal is not None,
    )
