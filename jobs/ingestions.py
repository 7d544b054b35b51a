"""A job that brings files into a vector store: of a client who attaches them, to mend what is missing, of a source."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.orm import Session

from jobs import attachments, ledger
from jobs.attachments import Attachment
from jobs.clock import now
from jobs.ids import new_id
from jobs.models import Job, VectorStore
from jobs.payloads import INGESTION, Ingestion

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
    """The job and the rows of its files, in the caller's transaction. A source's files are found when it is planned."""
    created_at = now()
    job = Job(
        id=new_id(prefix),
        project_id=store.project_id,
        kind=INGESTION,
        model=store.model,
        payload=Ingestion(store_id=store.id, source_id=source_id).model_dump(mode="json", exclude_none=True),
        total=len(files),
        window=WINDOW,
        created_at=created_at,
        deadline=created_at + _WINDOW_SECONDS,
        **facts,
    )
    ledger.submit(session, job, actor=actor)
    if source_id is None:
        attachments.attach(session, store, job, files)
    return job
