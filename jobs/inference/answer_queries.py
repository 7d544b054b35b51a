"""Select stored answers: those of chats and of responses that match a model and a time."""

from typing import Any, Final

from sqlalchemy import Select, exists, or_, select

from jobs.clock import now
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job

#: Stored answers among which those that match are looked for, the newest of the given time.
LOOKED_AT: Final = 100_000


def select_answers(
    table: type[StoredCompletion] | type[StoredResponse],
    project_id: str,
    *,
    model: str | None,
    since: float | None,
    until: float | None,
) -> Select[tuple[str, Any]]:
    """Return a query of the ids and the metadata of stored answers of a project, the newest first.

    `model` is the one that was asked, or that has answered. The time `until` is exclusive.
    """
    rows: Any = table
    order = rows.created_at.desc(), rows.id.desc()
    newest = select(rows.id).where(rows.project_id == project_id, rows.expires_at > now())
    if since is not None:
        newest = newest.where(rows.created_at >= since)
    if until is not None:
        newest = newest.where(rows.created_at < until)
    looked_at = newest.order_by(*order).limit(LOOKED_AT).subquery()
    answers = select(rows.id, rows.metadata_).join(looked_at, looked_at.c.id == rows.id).order_by(*order)
    if model is not None:
        answers = answers.where(or_(rows.requested_model == model, rows.model == model))
    if table is StoredResponse:  # those in the background have an answer once their job has succeeded
        answers = answers.where(~exists().where(Job.id == rows.id, Job.state != JobState.SUCCEEDED))
    return answers
