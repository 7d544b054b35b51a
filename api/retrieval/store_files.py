"""The files of a vector store: attach, list, read, update and remove them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.http.bodies import Body, resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Before, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.http.space import count_if_due
from api.retrieval.queries import Attributes, get_store, get_store_file, ingest
from api.retrieval.schemas import (
    ChunkingStrategy,
    CreatedVectorStoreFile,
    FileContentPage,
    VectorStoreFileDeleted,
    VectorStoreFileObject,
    dump_chunking,
    show_content,
    show_store_file,
)
from api.webhooks.queries import JobWebhook, check_webhook, show_webhook
from jobs.errors import NightmillError
from jobs.retrieval import attachments, documents, indexes
from jobs.retrieval.ingestions import SINGLE
from jobs.retrieval.tables import VectorStore, VectorStoreFile

router: APIRouter = resource("Vector store files", area="vector_stores")

Filter = Annotated[Literal["in_progress", "completed", "failed", "cancelled"] | None, Query(alias="filter")]
#: The polling interval that SDKs obey: small files are done before their usual second is over.
POLL_AFTER = "openai-poll-after-ms"
POLL_MS = 300


@dataclass(frozen=True, slots=True)
class Listing:
    """The selection of a store's files."""

    after: After = None
    before: Before = None
    limit: Limit20 = 20
    order: Order = "desc"
    only: Filter = None

    def page(
        self,
        call: CallContext,
        session: Session,
        store: VectorStore,
        *conditions: ColumnElement[bool],
        index_id: str = "",
    ) -> Page[VectorStoreFileObject]:
        """Return a page of files of the index in use, or of another index."""
        among = select(VectorStoreFile).where(VectorStoreFile.store_id == (index_id or store.current_id))
        statement = among.where(*conditions)
        if self.only is not None:
            statement = statement.where(VectorStoreFile.status == self.only)
        details: dict[str, Any] = {"after": self.after, "before": self.before, "limit": self.limit, "order": self.order}
        deletions = deletion_details(call, "vector_store.file.delete", store.id)
        rows, more = find(session, statement, VectorStoreFile, **details, among=among, deletions=deletions)
        stages = attachments.stages(session, rows)
        return page(rows, more, lambda row: show_store_file(store, row, stages.get(row.id)))


Listed = Annotated[Listing, Depends()]


class CreateVectorStoreFile(Body):
    file_id: str = Field(min_length=1, max_length=64)
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class AttachVectorStoreFile(CreateVectorStoreFile):
    """A file that is attached alone may have its own webhook; OpenAI has no such field."""

    webhook: JobWebhook | None = None


class UpdateVectorStoreFile(Body):
    attributes: Attributes | None


@router.post("/vector_stores/{vector_store_id}/files", response_model=VectorStoreFileObject | CreatedVectorStoreFile)
def create_vector_store_file(
    call: Call, once: Idempotent, vector_store_id: str, body: AttachVectorStoreFile
) -> Response:
    """Attach a file to a store.

    If it is attached already, its old version stays visible until the new one is complete.
    """
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    hook = check_webhook(call, body.webhook)

    def make(session: Session) -> VectorStoreFileObject:
        store = get_store(session, call, vector_store_id, alive=True)
        options = body.attributes, dump_chunking(body.chunking_strategy)
        ingest(session, call, store, SINGLE, {body.file_id: options}, once.key, hook)
        call.record(session, "vector_store.file.create", body.file_id, {"store": store.id})
        shown = _show_file(session, store, get_store_file(session, store, body.file_id))
        return CreatedVectorStoreFile(**shown.model_dump(), webhook=show_webhook(hook)) if hook else shown

    count_if_due(call)
    return once.run(fields, make)


@router.get("/vector_stores/{vector_store_id}/files")
def list_vector_store_files(call: Call, vector_store_id: str, listing: Listed) -> Page[VectorStoreFileObject]:
    """List the files of a store."""
    with call.db.read() as session:
        return listing.page(call, session, get_store(session, call, vector_store_id))


@router.get("/vector_stores/{vector_store_id}/files/{file_id}")
def retrieve_vector_store_file(
    call: Call, response: Response, vector_store_id: str, file_id: str
) -> VectorStoreFileObject:
    """Return one file of a store with its status."""
    with call.db.read() as session:
        store = get_store(session, call, vector_store_id)
        shown = _show_file(session, store, get_store_file(session, store, file_id))
    if shown.status == attachments.IN_PROGRESS:
        response.headers[POLL_AFTER] = str(POLL_MS)
    return shown


@router.post("/vector_stores/{vector_store_id}/files/{file_id}")
def update_vector_store_file(
    call: Call, vector_store_id: str, file_id: str, body: UpdateVectorStoreFile
) -> VectorStoreFileObject:
    """Change a file's attributes; the next search sees them."""
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        for _, row in indexes.rows_of(session, store, file_id):
            row.attributes = body.attributes
        row = get_store_file(session, store, file_id)
        call.record(session, "vector_store.file.update", file_id, {"store": store.id})
        return _show_file(session, store, row)


def _show_file(session: Session, store: VectorStore, row: VectorStoreFile) -> VectorStoreFileObject:
    return show_store_file(store, row, attachments.stages(session, [row]).get(row.id))


@router.delete("/vector_stores/{vector_store_id}/files/{file_id}")
def delete_vector_store_file(call: Call, vector_store_id: str, file_id: str) -> VectorStoreFileDeleted:
    """Remove a file and its vectors from a store. The file itself stays."""
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id, lock=True)
        details = cursor_details(get_store_file(session, store, file_id))
        for index, row in indexes.rows_of(session, store, file_id):
            attachments.remove(session, index, row)
        call.record(session, "vector_store.file.delete", file_id, {"store": store.id, **details})
    return VectorStoreFileDeleted(id=file_id)


@router.get("/vector_stores/{vector_store_id}/files/{file_id}/content")
def vector_store_file_content(call: Call, vector_store_id: str, file_id: str) -> FileContentPage:
    """Return the text of a file as it was parsed; offsets of chunks refer to this text."""
    lost = ""
    while True:
        with call.db.read() as session:
            store = get_store(session, call, vector_store_id)
            row = get_store_file(session, store, file_id)
        if row.document is None:
            return show_content(None)
        document = documents.load(call.storage, row.store_id, attachments.version_of(row.document))
        if document is not None:
            return show_content(document)
        if row.document == lost:
            raise NightmillError("The text of this file is lost. `nightmill vectors verify --repair` makes it anew.")
        lost = row.document  # or another version replaced it meanwhile
