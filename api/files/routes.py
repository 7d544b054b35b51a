"""Files: stream bytes into storage, then insert a row; list, download and delete them.

A deleted file is hidden at once. Its bytes are removed when the last live job that reads them has ended.
"""

from functools import partial
from typing import Annotated, Any, get_args

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.files.queries import expiry, get_file, insert, remove_on_error, visible
from api.files.schemas import FileDeleted, FileObject, Purpose, show_file
from api.http.bodies import resource, validate_fields
from api.http.download import BYTES_RESPONSES, Download, send_file
from api.http.fields import ExpiresAfter, filename
from api.http.idempotency import Idempotent
from api.http.multipart import BYTES, Received, Sink, describe_form, receive
from api.http.paging import After, Order, Page, cursor_details, deletion_details, find, page
from api.http.space import receiving, reserve
from api.shares import run_in_threadpool
from jobs.clock import now
from jobs.datasets import references
from jobs.errors import Conflict, InvalidRequest
from jobs.files.tables import File
from jobs.finetuning import datasets
from jobs.ids import new_id
from jobs.retrieval import attachments

router = resource("Files", area="files")

_FORM = describe_form(
    ["file", "purpose"],
    {
        "file": BYTES,
        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
)
_EXPIRES = "expires_after"


@router.post("/files", response_model=FileObject, openapi_extra=_FORM)
async def create_file(request: Request, call: Call, once: Idempotent) -> Response:
    """Upload a file. Its bytes are streamed, hashed and durable before the answer."""
    file_id = new_id("file-")
    path = f"files/{file_id}"
    async with once.hold_lease() as lease, receiving(call, request, lease, call.config.file_max_bytes):
        written = None if lease.stored else path
        sink = Sink("file", call.storage, written, call.config.file_max_bytes)
        form = await receive(request, sink, lease.heartbeat)

        def complete() -> Response:
            with remove_on_error(call, written):
                file = _row(call, file_id, path, form)
                fields = {**form.fields, "file": {"filename": file.filename, "sha256": form.sha256}}
                return lease.complete(fields, partial(_insert, call, file))

        return await run_in_threadpool(complete)


@router.get("/files")
def list_files(
    call: Call,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[FileObject]:
    """List the project's files."""
    statement = visible(call)
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    with call.db.read() as session:
        including_deleted = select(File).where(File.project_id == call.project_id)  # a client may delete while it lists
        cursor: dict[str, Any] = {"after": after, "limit": limit, "order": order}
        rows, more = find(
            session, statement, File, among=including_deleted, deletions=deletion_details(call, "file.delete"), **cursor
        )
    return page(rows, more, show_file)


@router.get("/files/{file_id}")
def retrieve_file(call: Call, file_id: str) -> FileObject:
    """Return the description of one file."""
    with call.db.read() as session:
        return show_file(get_file(session, call, file_id))


@router.delete("/files/{file_id}")
def delete_file(
    call: Call,
    file_id: str,
    erase: Annotated[bool, Query(description="Also where tuned models hold the file as their training data.")] = False,
) -> FileDeleted:
    """Hide a file, and remove it from all vector stores. Jobs that read it go on.

    A split of a dataset is deleted with its version. A file that a fine-tuning job reads, or on which a tuned model was
    trained, is not deleted; with `erase` it is, once no job reads it, and the models are marked as `data_erased`.
    """
    with call.db.write() as session:
        file = get_file(session, call, file_id, lock=True)
        _check_not_in_use(session, file_id, erase=erase)
        file.deleted_at = now()
        attachments.remove_everywhere(session, [file_id])
        call.record(session, "file.delete", file_id, cursor_details(file))
    return FileDeleted(id=file_id)


@router.get("/files/{file_id}/content", response_class=Response, responses=BYTES_RESPONSES)
async def file_content(request: Request, call: Call, file_id: str) -> Response:
    """Return a file's bytes, or one range of them."""

    def look_up() -> Download:
        with call.db.read() as session:
            file = get_file(session, call, file_id)
            return Download(file.path, file.bytes, file.filename)

    file = await run_in_threadpool(look_up)
    return await send_file(call.storage, file, request.headers.get("range"))


def _check_not_in_use(session: Session, file_id: str, *, erase: bool) -> None:
    """Raise Conflict for a file that a dataset or fine-tuning needs. With `erase` no model needs its data any more."""
    if reference := references.references_to(session, [file_id]).get(file_id):
        message = f"The file '{file_id}' is '{reference}': delete that version of the dataset."
        raise Conflict(message, param="file_id", code="file_in_use")
    if erase:
        datasets.erase(session, file_id)
    if holders := datasets.holders(session, file_id):
        message = f"The file '{file_id}' is the training data of {', '.join(holders)}."
        raise Conflict(message, param="file_id", code="file_in_use")


def _insert(call: CallContext, file: File, session: Session) -> FileObject:
    reserve(session, call, file.bytes)
    return insert(session, call, file)


def _row(call: CallContext, file_id: str, path: str, form: Received) -> File:
    purpose = _purpose(form.fields)
    after = _expires_after(form.fields)
    created_at = now()
    return File(
        id=file_id,
        project_id=call.project_id,
        purpose=purpose,
        filename=filename(form.filename, "file"),
        bytes=form.bytes,
        sha256=form.sha256,
        path=path,
        created_at=created_at,
        expires_at=expiry(call.config, purpose, after.seconds if after else None, created_at),
    )


def _purpose(fields: dict[str, str]) -> str:
    purpose = fields.get("purpose")
    if purpose is None:
        raise InvalidRequest(
            "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    supported = get_args(Purpose)
    if purpose not in supported:
        names = ", ".join(f"'{name}'" for name in supported)
        message = f"Invalid value: '{clip(purpose)}'. Supported values are: {names}."
        raise InvalidRequest(message, param="purpose", code="invalid_value")
    return purpose


def _expires_after(fields: dict[str, str]) -> ExpiresAfter | None:
    """Return `expires_after[anchor]` and `expires_after[seconds]` of a form; refuse any other field."""
    given: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "purpose":
            continue
        if not (name.startswith(f"{_EXPIRES}[") and name.endswith("]")):
            raise InvalidRequest(f"Unknown parameter: '{clip(name)}'.", param=clip(name), code="unknown_parameter")
        digits = value.isascii() and value.isdigit() and len(value) < 12
        given[name[len(_EXPIRES) + 1 : -1]] = int(value) if digits else value
    if not given:
        return None
    return validate_fields(ExpiresAfter, given, _EXPIRES)
