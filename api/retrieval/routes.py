"""Vector stores: create, list, read, update and delete them."""

from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import Metadata
from api.http.idempotency import Idempotent
from api.http.paging import After, Before, Limit20, Order, Page, cursor_details, deletion_details, find, page
from api.http.space import count_if_due
from api.retrieval.queries import get_store, ingest, show_stores, stop_jobs, stores_of
from api.retrieval.schemas import AUTO, ChunkingStrategy, VectorStoreDeleted, VectorStoreObject, dump_chunking
from jobs.clock import now
from jobs.errors import InvalidRequest
from jobs.fleet import access, checkpoint, routing
from jobs.fleet.models_file import EngineKind, ModelConfig
from jobs.ids import new_id
from jobs.requests.endpoints import EMBEDDINGS
from jobs.retrieval import attachments, indexes
from jobs.retrieval.ingestions import SINGLE
from jobs.retrieval.tables import VectorStore

router: APIRouter = resource("Vector stores", area="vector_stores")

_MAX_FILES = 500  # OpenAI's limit for a create


class StoreExpiresAfter(Body):
    """The time after its last use at which a store expires."""

    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class CreateVectorStore(Body):
    """OpenAI's fields, and two others: the embedding model, and the length to which its vectors are shortened."""

    name: str | None = Field(default=None, max_length=256)
    description: str | None = Field(default=None, max_length=4096)
    file_ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=_MAX_FILES)] | None = None
    expires_after: StoreExpiresAfter | None = None
    chunking_strategy: ChunkingStrategy | None = None
    metadata: Metadata | None = None
    embedding_model: str | None = Field(default=None, min_length=1, max_length=255)
    embedding_dimensions: int | None = Field(default=None, ge=1, le=16_384)


class UpdateVectorStore(Body):
    name: str | None = Field(default=None, max_length=256)
    expires_after: StoreExpiresAfter | None = None
    metadata: Metadata | None = None


@router.post("/vector_stores", response_model=VectorStoreObject)
def create_vector_store(call: Call, once: Idempotent, body: CreateVectorStore) -> Response:
    """Create a store, empty or with files, which are added at once."""
    fields = body.fields()

    def make(session: Session) -> VectorStoreObject:
        store = _new(session, call, body)
        session.add(store)
        session.flush()
        call.record(session, "vector_store.create", store.id)
        if body.file_ids:
            files = dict.fromkeys(body.file_ids, (None, None))
            ingest(session, call, store, SINGLE, files, once.key)
        return show_stores(session, [store])[0]

    if body.file_ids:
        count_if_due(call)
    return once.run(fields, make)


@router.get("/vector_stores")
def list_vector_stores(
    call: Call, after: After = None, before: Before = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[VectorStoreObject]:
    """List the project's stores."""
    with call.db.read() as session:
        cursor: dict[str, Any] = {"after": after, "before": before, "limit": limit, "order": order}
        rows, more = find(
            session, stores_of(call), VectorStore, deletions=deletion_details(call, "vector_store.delete"), **cursor
        )
        objects = {entry.id: entry for entry in show_stores(session, rows)}
    return page(rows, more, lambda store: objects[store.id])


@router.get("/vector_stores/{vector_store_id}")
def retrieve_vector_store(call: Call, vector_store_id: str) -> VectorStoreObject:
    """Return one store with the progress of its files."""
    with call.db.read() as session:
        return show_stores(session, [get_store(session, call, vector_store_id)])[0]


@router.post("/vector_stores/{vector_store_id}")
def update_vector_store(call: Call, vector_store_id: str, body: UpdateVectorStore) -> VectorStoreObject:
    """Change the fields in the request; `null` removes a value."""
    given = body.model_fields_set
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id, alive=True, lock=True)
        if "name" in given:
            store.name = body.name or ""
        if "metadata" in given:
            store.metadata_ = body.metadata
        if "expires_after" in given:
            store.expires_days = body.expires_after.days if body.expires_after else None
        session.flush()
        attachments.touch(session, store.id, now())
        call.record(session, "vector_store.update", store.id)
        session.refresh(store)
        return show_stores(session, [store])[0]


@router.delete("/vector_stores/{vector_store_id}")
def delete_vector_store(call: Call, vector_store_id: str) -> VectorStoreDeleted:
    """Delete a store and its vectors. Its files stay, except those that its sources have added."""
    with call.db.write() as session:
        store = get_store(session, call, vector_store_id)
        stop_jobs(session, call, [index.id for index in indexes.all_of(session, store)])
        attachments.remove_store(session, store)
        call.record(session, "vector_store.delete", store.id, cursor_details(store))
    return VectorStoreDeleted(id=vector_store_id)


def _new(session: Session, call: CallContext, body: CreateVectorStore) -> VectorStore:
    model = resolve_model(session, call, body.embedding_model or _default_model(call), body.embedding_dimensions)
    at = now()
    days = body.expires_after.days if body.expires_after else None
    metadata = {"metadata_": body.metadata} if body.metadata is not None else {}
    return VectorStore(
        id=new_id("vs_"),
        project_id=call.project_id,
        name=body.name or "",
        description=body.description,
        model=model,
        dimensions=body.embedding_dimensions or 0,
        shortened=body.embedding_dimensions is not None,
        chunking=dump_chunking(body.chunking_strategy) or AUTO,
        expires_days=days,
        created_at=at,
        active_at=at,
        expires_at=None if days is None else at + 86_400 * days,
        **metadata,
    )


def _default_model(call: CallContext) -> str:
    """Return the deployment's embedding model.

    Raises: InvalidRequest, if it has none.
    """
    model = call.services.registry().embedder(call.config.embedding_model)
    if model is None:
        message = "This deployment names no embedding model: say which in 'embedding_model'."
        raise InvalidRequest(message, param="embedding_model", code="missing_required_parameter")
    return model


def resolve_model(session: Session, call: CallContext, model: str, dimensions: int | None) -> str:
    """Return the own name of an embedding model, of an alias that of its incumbent.

    A model that an endpoint may still show is accepted.

    Raises: InvalidRequest.
    """
    try:
        with suppress(routing.NotYet):
            registry = call.services.registry()
            incumbent = access.model_of_name(session, registry, model, call.project_id)
            work = replace(call.work(incumbent, EMBEDDINGS), fallbacks=())
            model = access.resolve(session, call.config, registry, work).model
    except routing.NotServed as refusal:
        message = f"The model '{clip(model)}' cannot be used: {refusal}"
        raise InvalidRequest(message, param="embedding_model", code=refusal.code) from refusal
    known = call.services.registry().resolve(model)
    if known and dimensions:
        _check_dimensions(known, dimensions)
    return known.name if known else model


def _check_dimensions(model: ModelConfig, dimensions: int) -> None:
    """Check that vectors are not longer than the model's, as far as its files say.

    Raises: InvalidRequest.
    """
    folder = checkpoint.folder_of(model) if model.engine is EngineKind.EMBED else None
    longest = checkpoint.dimensions_of(folder) if folder else None
    if longest is not None and dimensions > longest:
        message = (
            f"The model '{clip(model.name)}' gives vectors of {longest} dimensions, and {dimensions} were asked for."
        )
        raise InvalidRequest(message, param="embedding_dimensions", code="invalid_value")
