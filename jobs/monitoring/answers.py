"""The stored answers of a project that a monitor looks at."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.monitoring.monitors import AnswerSource

#: Stored answers among which those that match are looked for.
LOOKED_AT: Final = 100_000


def find_answers(session: Session, project_id: str, source: AnswerSource) -> Sequence[tuple[str, Any]]:
    """Return the ids and the metadata of the stored answers that match a source, the newest first.

    They are among the newest 100,000 of its time.
    """
    table: Any = StoredCompletion if source.type == "stored_completions" else StoredResponse
    order = table.created_at.desc(), table.id.desc()
    conditions: list[ColumnElement[bool]] = [table.project_id == project_id, table.expires_at > now()]
    if source.created_after is not None:
        conditions.append(table.created_at >= source.created_after)
    if source.created_before is not None:
        conditions.append(table.created_at < source.created_before)
    looked_at = select(table.id).where(*conditions).order_by(*order).limit(LOOKED_AT).subquery()
    statement = select(table.id, table.metadata_).join(looked_at, looked_at.c.id == table.id).order_by(*order)
    if source.model is not None:
        statement = statement.where(or_(table.requested_model == source.model, table.model == source.model))
    if table is StoredResponse:  # those in the background have an answer once their job has succeeded
        statement = statement.where(~exists().where(Job.id == table.id, Job.state != JobState.SUCCEEDED))
    required = (source.metadata or {}).items()
    return [(name, metadata) for name, metadata in session.execute(statement) if required <= (metadata or {}).items()]
