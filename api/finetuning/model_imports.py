"""Imports of models: each is a job that registers the files of an exported adapter as a version of a model."""

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, Many, resource
from api.http.fields import unix_seconds
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, find, page
from api.http.space import check_space, reserve
from jobs.errors import InvalidRequest, NotFound
from jobs.finetuning import model_imports
from jobs.finetuning.model_imports import MAX_FILES, ImportRequest, ModelImport
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.requests.endpoints import FINE_TUNING

router = resource("Model versions", area="model_versions")

_LENGTH = 255

# ── requests ──


class ImportFile(Body):
    """An uploaded file, and its name in the folder."""

    name: str = Field(min_length=1, max_length=_LENGTH)
    file_id: str = Field(min_length=1, max_length=64)


class CreateModelImport(Body):
    """The files of the folder of an exported adapter, with its `manifest.json`."""

    base: str = Field(min_length=1, max_length=_LENGTH, description="The model that the adapter is for.")
    files: Annotated[Many[ImportFile], Field(min_length=1, max_length=MAX_FILES)]
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="With the base it is the family of the version."
    )
    parent: Annotated[str, Field(min_length=1, max_length=_LENGTH)] | None = Field(
        default=None, description="The tuned model of the project that this one came of."
    )
    license: Annotated[str, Field(min_length=1, max_length=_LENGTH)] | None = Field(
        default=None, description="In place of that of the base."
    )


# ── objects ──

ImportStatus = Literal["in_progress", "succeeded", "failed", "cancelling", "cancelled"]


class ModelImportError(BaseModel):
    code: str
    message: str


class ModelImportObject(BaseModel):
    """An import. `model` is the name of the model that it registers; `error` is the reason for which it registers none.

    `files` has the ids of the files by their names.
    """

    id: str
    object: Literal["model.import"] = "model.import"
    status: ImportStatus
    base: str
    suffix: str | None
    parent: str | None
    license: str | None
    files: dict[str, str]
    model: str | None
    error: ModelImportError | None
    created_at: int
    ended_at: int | None


_STATUS: Mapping[str, ImportStatus] = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLING: "cancelling",
    JobState.CANCELLED: "cancelled",
}


def _show(job: Job) -> ModelImportObject:
    payload, errors = ModelImport.model_validate(job.payload), job.errors or []
    shown = payload.model_dump(include={"base", "suffix", "parent", "license", "files"})
    return ModelImportObject(
        id=job.id,
        status=_status_of(job),
        model=payload.result if job.state == JobState.SUCCEEDED else None,
        error=ModelImportError(code=errors[0]["code"], message=errors[0]["message"]) if errors else None,
        created_at=int(job.created_at),
        ended_at=unix_seconds(job.completed_at or job.failed_at or job.cancelled_at),
        **shown,
    )


def _status_of(job: Job) -> ImportStatus:
    return _STATUS.get(job.state, "in_progress")


# ── routes ──


@router.post("/model_imports", response_model=ModelImportObject)
def create_model_import(call: Call, once: Idempotent, body: CreateModelImport) -> Response:
    """Queue the import of a model. Its files are checked after the answer."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    files = {file.name: file.file_id for file in body.files}
    if len(files) < len(body.files):
        raise InvalidRequest("Invalid files: two have the same name.", param="files", code="invalid_value")
    request = ImportRequest(files=files, **body.model_dump(exclude={"files"}))
    with call.db.read() as session:
        size = sum(row.bytes for row in model_imports.find_files(session, call.project_id, files, lock=False).values())
    check_space(call, size)

    def make(session: Session) -> ModelImportObject:
        reserve(session, call, size)
        job = model_imports.submit(
            session,
            call.services.registry(),
            request,
            call.work(body.base, FINE_TUNING),
            actor=call.actor,
            idempotency_key=once.key,
            request_id=call.request_id,
        )
        call.record(session, "model_import.create", job.id, {"base": body.base, "files": len(files)})
        return _show(job)

    return once.run(fields, make)


@router.get("/model_imports")
def list_model_imports(
    call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[ModelImportObject]:
    """List the project's imports of models."""
    with call.db.read() as session:
        rows, more = find(session, _imports_of(call), Job, after=after, limit=limit, order=order)
    return page(rows, more, _show)


@router.get("/model_imports/{model_import_id}")
def retrieve_model_import(call: Call, model_import_id: str) -> ModelImportObject:
    """Return one import of a model."""
    with call.db.read() as session:
        return _show(_get(session, call, model_import_id))


@router.post("/model_imports/{model_import_id}/cancel")
def cancel_model_import(call: Call, model_import_id: str) -> ModelImportObject:
    """Stop an import: nothing is registered. Cancelling twice is not an error."""
    with call.db.write() as session:
        return _show(call.cancel(session, _get(session, call, model_import_id), "model_import.cancel", _refusal))


def _refusal(job: Job) -> str:
    return f"Cannot cancel an import with status '{_status_of(job)}'."


def _imports_of(call: CallContext) -> Select[Job]:
    return select(Job).where(Job.project_id == call.project_id, Job.kind == model_imports.NAME)


def _get(session: Session, call: CallContext, model_import_id: str) -> Job:
    job = session.scalar(_imports_of(call).where(Job.id == model_import_id))
    if job is None:
        message = f"No import found with id '{clip(model_import_id)}'."
        raise NotFound(message, param="model_import_id", code="model_import_not_found")
    return job
