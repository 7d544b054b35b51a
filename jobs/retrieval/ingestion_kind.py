"""The kind of jobs that add files to a vector store: its row, and what happens when such a job ends or is retried."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.errors import Expired, InvalidRequest, NotFound
from jobs.files.tables import File
from jobs.ledger.kinds import Kind, Retry, StorageFolder
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.retrieval import attachments, documents, indexes, ingestions, reindexing, source_items
from jobs.retrieval.attachments import Attachment, is_over
from jobs.retrieval.indexes import index_of
from jobs.retrieval.ingestions import FILE_BATCH, SINGLE, Ingestion
from jobs.retrieval.tables import Source, VectorStore, VectorStoreFile


def _record_end(session: Session, job: Job) -> None:
    """End the files and the source's sync of an ingestion that ends."""
    attachments.end_files(session, job)
    source_items.record_end(session, job)


def _stop(session: Session, job: Job, end: JobState, errors: Sequence[Mapping[str, Any]]) -> bool:
    limit = attachments.STOPPED_AT_ONCE
    return attachments.stop(session, job, end, errors, seq=job.event_seq + 1, limit=limit) == limit


def _retry(session: Session, request: Retry) -> Job:
    """Submit the files of an ingestion that failed or were not reached, unless they were attached anew since."""
    old = request.job
    if request.which != "failed":
        message = f"The files of job '{old.id}' that failed are retried: 'which' must be 'failed'."
        raise InvalidRequest(message, param="which", code="invalid_value")
    store = indexes.lock(session, old.payload["store_id"])
    if store is None:
        message = f"No vector store found with id '{old.payload['store_id']}'."
        raise NotFound(message, param="vector_store_id")
    if is_over(store):
        raise Expired(f"The vector store '{store.id}' has expired.", param="vector_store_id")
    beside = bool(old.payload.get("beside"))
    index = session.get(VectorStore, index_of(old.payload) if beside else store.current_id)
    undone = VectorStoreFile.status.in_((attachments.FAILED, attachments.CANCELLED))
    remaining = select(VectorStoreFile).join(File, File.id == VectorStoreFile.id).where(File.deleted_at.is_(None))
    remaining = remaining.where(
        VectorStoreFile.store_id == (index.id if index else ""), VectorStoreFile.job_id == old.id, undone
    )
    remaining = remaining.order_by(VectorStoreFile.id)
    remaining = remaining.with_for_update(read=True, of=File)  # exclude a file that is deleted at this moment
    files = [Attachment(row.id, row.filename, row.chunking, row.attributes) for row in session.scalars(remaining)]
    if index is None or not files:
        raise InvalidRequest(f"No file of job '{old.id}' is left to be brought in.", code="nothing_to_retry")
    prefix = FILE_BATCH if old.id.startswith(FILE_BATCH) else SINGLE
    columns = request.columns | {"webhook_url": old.webhook_url, "webhook_secret": old.webhook_secret}
    job = ingestions.create_ingestion(
        session, index, files, actor=request.actor, prefix=prefix, beside=beside, **columns
    )
    if source_id := old.payload.get("source_id"):  # it may have ended before the store's other indexes got these files
        reindexing.alongside(session, job, source_id, actor=request.actor, request_id=request.request_id)
    return job


INGESTION: Final = Kind(
    ingestions.NAME,
    "Files of a vector store",
    FILE_BATCH,
    Ingestion,
    ingestions.EVENTS,
    attachments.EVENTS | source_items.EVENTS,
    resources=("vector_stores",),
    permission="api.vector_stores.write",
    links={"vector_store_id": itemgetter("store_id"), "vector_store_index_id": index_of},
    run_queue=Queue.EMBED,
    retry=_retry,
    slot_weight=1.0,
    counted=False,
    has_lines=False,
    folders=(StorageFolder(documents.FOLDER, VectorStore.id, flat=False),),
    stored_bytes={
        "vector_stores": select(VectorStoreFile.project_id, func.sum(VectorStoreFile.usage_bytes)).group_by(
            VectorStoreFile.project_id
        )
    },
    named_by=(VectorStoreFile.job_id, VectorStore.job_id, Source.job_id),
    stop=_stop,
    ended=_record_end,
)
