"""File batches of vector stores: jobs of kind ingestion in OpenAI's shape."""

from typing import Annotated, Self

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, Many, resource
from api.http.fields import AfterJobs
from api.http.idempotency import Idempotent
from api.http.paging import Page
from api.http.space import count_if_due
from api.retrieval.queries import Attributes, get_store, ingest
from api.retrieval.schemas import (
    BATCH_STATUS,
    ChunkingStrategy,
    CreatedFileBatch,
    FileBatchObject,
    VectorStoreFileObject,
    dump_chunking,
    show_file_batch,
)
from api.retrieval.store_files import POLL_AFTER, POLL_MS, CreateVectorStoreFile, Listed
from api.webhooks.queries import JobWebhook, check_webhook, show_webhook
from jobs.errors import NotFound
from jobs.ledger.dependencies import predecessors
from jobs.ledger.progress import totals
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from jobs.retrieval import ingestions
from jobs.retrieval.indexes import index_of
from jobs.retrieval.ingestions import FILE_BATCH
from jobs.retrieval.tables import VectorStore, VectorStoreFile

router: APIRouter = resource("Vector store file batches", area="vector_stores")


class CreateFileBatch(Body):
    """The files to add: `file_ids`, which share attributes and chunking, or `files`, each with its own.

    `webhook` and `after` are not OpenAI's.
    """

    file_ids: Annotated[Many[Annotated[str, Field(max_length=64)]], Field(min_length=1)] | None = None
    files: Annotated[Many[CreateVectorStoreFile], Field(min_length=1)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None
    webhook: JobWebhook | None = None
    after: AfterJobs | None = None

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("Exactly one of 'file_ids' and 'files' is required.")
        return self


@router.post("/vector_stores/{vector_store_id}/file_batches", response_model=FileBatchObject | CreatedFileBatch)
def create_file_batch(call: Call, once: Idempotent, vector_store_id: str, body: CreateFileBatch) -> Response:
    """Add many files to a store. A file that is named twice is added once."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    hook = check_webhook(call, body.webhook)

    def make(session: Session) -> FileBatchObject:
        store = get_store(session, call, vector_store_id, alive=True)
        shared = (body.attributes, dump_chunking(body.chunking_strategy))
        files = dict.fromkeys(body.file_ids or (), shared)
        for file in body.files or ():
            files.setdefault(file.file_id, (file.attributes, dump_chunking(file.chunking_strategy)))
        job = ingest(session, call, store, FILE_BATCH, files, once.key, hook, body.after or ())
        shown = _show_batch(session, job)
        return CreatedFileBatch(**shown.model_dump(), webhook=show_webhook(hook)) if hook else shown

    count_if_due(call)
    return once.run(fields, make)


@router.get("/vector_stores/{vector_store_id}/file_batches/{file_batch_id}")
def retrieve_file_batch(call: Call, response: Response, vector_store_id: str, file_batch_id: str) -> FileBatchObject:
    """Return the progress of a file batch."""
    with call.db.read() as session:
        job = _get(session, call, get_store(session, call, vector_store_id), file_batch_id)
        shown = _show_batch(session, job)
    if job.state not in TERMINAL:
        response.headers[POLL_AFTER] = str(POLL_MS)
    return shown


@router.post("/vector_stores/{vector_store_id}/file_batches/{file_batch_id}/cancel")
def cancel_file_batch(call: Call, vector_store_id: str, file_batch_id: str) -> FileBatchObject:
    """Stop adding files; those that were added stay. Cancelling twice is not an error."""
    with call.db.write() as session:
        job = _get(session, call, get_store(session, call, vector_store_id), file_batch_id)
        job = call.cancel(session, job, "vector_store.file_batch.cancel", _refusal)
        return _show_batch(session, job)


def _refusal(job: Job) -> str:
    return f"Cannot cancel a file batch with status '{BATCH_STATUS.get(job.state, 'in_progress')}'."


@router.get("/vector_stores/{vector_store_id}/file_batches/{file_batch_id}/files")
def list_file_batch_files(
    call: Call, vector_store_id: str, file_batch_id: str, listing: Listed
) -> Page[VectorStoreFileObject]:
    """List the files of a batch that are in the store, and that were not attached again since."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        job = _get(session, call, store, file_batch_id)
        return listing.page(call, session, store, VectorStoreFile.job_id == job.id, index_id=index_of(job.payload))


def _show_batch(session: Session, job: Job) -> FileBatchObject:
    return show_file_batch(job, totals(session, [job])[job.id], predecessors(session, [job])[job.id])


def _get(session: Session, call: CallContext, store: VectorStore, file_batch_id: str) -> Job:
    conditions = Job.project_id == call.project_id, Job.kind == ingestions.NAME, Job.id == file_batch_id
    job = session.scalar(select(Job).where(*conditions)) if file_batch_id.startswith(FILE_BATCH) else None
    if job is None or job.payload["store_id"] != store.id:
        raise NotFound(f"No file batch found with id '{clip(file_batch_id)}'.", param="batch_id")
    return job
