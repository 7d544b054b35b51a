"""Queries of vector stores and their files that several routes use, and the submission of files."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.errors import clip
from api.files.queries import visible
from api.http.fields import MetadataOf
from api.http.space import check_not_full
from api.retrieval.schemas import VectorStoreObject, show_store
from api.webhooks.queries import Hook
from jobs.errors import Conflict, Expired, NotFound
from jobs.files.tables import File
from jobs.ledger import ledger
from jobs.ledger.tables import Job
from jobs.retrieval import indexes, ingestions
from jobs.retrieval.attachments import IN_PROGRESS, Attachment, is_over
from jobs.retrieval.tables import VectorStore, VectorStoreFile

_STOPPED = 20  # jobs of a deleted store that are cancelled at once; the others find that it does not exist
_Value = Annotated[str, Field(max_length=512)] | bool | int | float
#: OpenAI's attributes of a file: like metadata, but values may be numbers and booleans.
Attributes = MetadataOf[_Value]


def stores_of(call: CallContext) -> Select[VectorStore]:
    return select(VectorStore).where(VectorStore.project_id == call.project_id, VectorStore.parent_id.is_(None))


def get_store(
    session: Session, call: CallContext, store_id: str, *, alive: bool = False, lock: bool = False
) -> VectorStore:
    """Return a store. `alive` refuses an expired one; `lock` keeps its indexes unchanged.

    Raises: NotFound, Expired.
    """
    store = session.scalar(stores_of(call).where(VectorStore.id == store_id))
    if store is not None and lock:
        store = indexes.lock(session, store.id)
    if store is None:
        raise NotFound(f"No vector store found with id '{clip(store_id)}'.", param="vector_store_id")
    if alive and is_over(store):
        raise Expired(f"The vector store '{store_id}' has expired.", param="vector_store_id")
    return store


def get_store_file(session: Session, store: VectorStore, file_id: str) -> VectorStoreFile:
    """Return a file of the index in use.

    Raises: NotFound.
    """
    row = session.get(VectorStoreFile, (store.current_id, file_id))
    if row is None:
        message = f"No file found with id '{clip(file_id)}' in vector store '{store.id}'."
        raise NotFound(message, param="file_id")
    return row


def show_stores(session: Session, stores: Sequence[VectorStore]) -> list[VectorStoreObject]:
    """Return stores with the counts of their files, by one query for all."""
    ids = [store.current_id for store in stores]
    rows = {row.id: row for row in session.scalars(select(VectorStore).where(VectorStore.id.in_(ids)))}
    counts, used = counts_of(session, ids)
    return [
        show_store(store, rows[store.current_id], counts.get(store.current_id, {}), used.get(store.current_id, 0))
        for store in stores
    ]


def counts_of(session: Session, ids: Sequence[str]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Return the number of files by status, and the bytes used, of each index."""
    grouped = (
        select(VectorStoreFile.store_id, VectorStoreFile.status, func.count(), func.sum(VectorStoreFile.usage_bytes))
        .where(VectorStoreFile.store_id.in_(ids))
        .group_by(VectorStoreFile.store_id, VectorStoreFile.status)
    )
    counts: dict[str, dict[str, int]] = {}
    used: dict[str, int] = {}
    for store_id, status, count, size in session.execute(grouped):
        counts.setdefault(store_id, {})[status] = count
        used[store_id] = used.get(store_id, 0) + int(size or 0)
    return counts, used


def stop_jobs(session: Session, call: CallContext, index_ids: Sequence[str]) -> None:
    """Cancel jobs that fill deleted indexes. Jobs that are ending find that the indexes do not exist."""
    busy = VectorStoreFile.store_id.in_(index_ids), VectorStoreFile.status == IN_PROGRESS
    jobs = select(VectorStoreFile.job_id).where(*busy).distinct().order_by(VectorStoreFile.job_id)
    for job_id in session.scalars(jobs.limit(_STOPPED)).all():  # in the order in which maintenance locks them
        with suppress(Conflict):
            ledger.cancel(session, job_id, actor=call.actor)


def ingest(
    session: Session,
    call: CallContext,
    store: VectorStore,
    prefix: str,
    files: Mapping[str, tuple[dict[str, Any] | None, dict[str, Any] | None]],
    key: str | None,
    hook: Hook | None = None,
    after: Sequence[str] = (),
) -> Job:
    """Submit a job that adds files to a store, by id with their attributes and chunking, once `after` have completed.

    Raises: NotFound, ProjectFull, InvalidRequest.
    """
    check_not_full(session, call)
    names = find_names(session, call, list(files))
    attachments = [
        Attachment(name, names[name], chunking, attributes) for name, (attributes, chunking) in files.items()
    ]
    columns = {"idempotency_key": key, "request_id": call.request_id}
    if hook is not None:
        columns |= {"webhook_url": hook.url, "webhook_secret": hook.secret}
    return ingestions.submit(session, store, attachments, actor=call.actor, prefix=prefix, after=after, **columns)


def find_names(session: Session, call: CallContext, ids: list[str], *, lock: bool = True) -> dict[str, str]:
    """Return the names of the files by id; with `lock` their rows are locked against deletion.

    Raises: NotFound.
    """
    names: dict[str, str] = {}
    for start in range(0, len(ids), 500):
        page = visible(call).where(File.id.in_(ids[start : start + 500])).order_by(File.id)
        rows = session.scalars(page.with_for_update(read=True) if lock else page)
        names.update({file.id: file.filename for file in rows})
    missing = next((name for name in ids if name not in names), None)
    if missing is not None:
        raise NotFound(f"No such File object: {clip(missing)}", param="file_id")
    return names
