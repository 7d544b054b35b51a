"""A job that brings files into a vector store: of a client who attaches them, to mend what is missing, of a source.

What a client attaches goes into each of the store's indexes, in a job for each: the client's own into the one in use.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import NotFound
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.payloads import INGESTION, Ingestion
from jobs.ledger.tables import Job
from jobs.retrieval import attachments, indexes
from jobs.retrieval.attachments import Attachment
from jobs.retrieval.tables import VectorStore

WINDOW: Final = "24h"
_WINDOW_SECONDS: Final = 86_400
SINGLE: Final = "ing_"


def submit(
    session: Session,
    store: VectorStore,
    files: Sequence[Attachment],
    *,
    actor: str,
    prefix: str = SINGLE,
    source_id: str | None = None,
    **facts: Any,
) -> Job:
    """The jobs and the rows of their files, in the caller's transaction. Raises NotFound, Expired.

    A source's files are found when its job, which is one alone, is planned.
    """
    if indexes.lock(session, store.id) is None:
        raise NotFound(f"No vector store found with id '{store.id}'.", param="vector_store_id")
    first, *others = indexes.all_of(session, store)
    if source_id is not None:
        return begin(session, first, 0, actor=actor, id=new_id(prefix), source_id=source_id, **facts)
    job = into(session, first, files, actor=actor, prefix=prefix, **facts)
    for other in others:
        into(session, other, files, actor=actor, beside=True, request_id=job.request_id)
    return job


def into(
    session: Session,
    index: VectorStore,
    files: Sequence[Attachment],
    *,
    actor: str,
    prefix: str = SINGLE,
    beside: bool = False,
    **facts: Any,
) -> Job:
    """The job for one index alone."""
    job = begin(session, index, len(files), actor=actor, beside=beside, id=new_id(prefix), **facts)
    attachments.attach(session, index, job, files)
    return job


def begin(
    session: Session,
    index: VectorStore,
    total: int,
    *,
    actor: str,
    beside: bool = False,
    source_id: str | None = None,
    again: bool = False,
    **facts: Any,
) -> Job:
    """The job itself, whose files the caller names by their rows."""
    created_at = now()
    index_id = index.id if index.parent_id else None
    payload = Ingestion(store_id=index.root, index_id=index_id, beside=beside, source_id=source_id, again=again)
    job = Job(
        project_id=index.project_id,
        kind=INGESTION,
        model=index.model,
        payload=payload.model_dump(mode="json", exclude_defaults=True),
        total=total,
        window=WINDOW,
        created_at=created_at,
        deadline=created_at + _WINDOW_SECONDS,
        **facts,
    )
    return ledger.submit(session, job, actor=actor)
