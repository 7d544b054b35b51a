"""Multi-part uploads: parts arrive in any order and in parallel, and `complete` joins them.

pending ──complete──▶ completed (a File)       parts: only while pending
   ├──cancel, or three completions with a wrong MD5──▶ cancelled
   └──an hour──▶ expired
"""

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Annotated
from weakref import WeakValueDictionary

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.files.queries import expiry, insert, remove_on_error
from api.files.schemas import PartObject, Purpose, UploadObject, show_part, show_upload
from api.http import multipart
from api.http.bodies import Body, resource
from api.http.fields import ExpiresAfter, Filename
from api.http.idempotency import Idempotent
from api.http.multipart import BYTES, Sink, describe_form, receive
from api.http.space import check_disk, check_project, receiving, reserve
from api.shares import run_in_threadpool
from jobs.clock import now
from jobs.db.engine import execute_and_count
from jobs.errors import Conflict, Expired, InvalidRequest, NotFound
from jobs.files.tables import File, Upload, UploadPart
from jobs.ids import new_id
from jobs.platform.storage import CHUNK, remove_objects

router = resource("Uploads", area="files")

_MD5_MISMATCHES = 3  # completions with a wrong MD5 before an upload is cancelled
#: The size of an upload and the time to complete it, as at OpenAI.
MAX_UPLOAD_BYTES = 8 << 30
_EXPIRY_SECONDS = 3600
_assembling = WeakValueDictionary[str, asyncio.Lock]()  # locks of uploads that this process completes
_PART_FORM = describe_form(["data"], {"data": BYTES})


class CreateUpload(Body):
    bytes: int = Field(ge=1, le=1 << 43, description="Size of the whole file.")
    filename: Filename
    mime_type: str = Field(max_length=255)
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    part_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=10_000)
    md5: str | None = Field(default=None, max_length=64, description="Of the whole file, in hex.")

    @property
    def parts_sha256(self) -> str:
        """Return a hash of the part ids in their order."""
        return hashlib.sha256("\n".join(self.part_ids).encode()).hexdigest()


@router.post("/uploads", response_model=UploadObject)
def create_upload(call: Call, once: Idempotent, body: CreateUpload) -> Response:
    """Create an upload for a file that is sent in parts within an hour."""
    if body.bytes > MAX_UPLOAD_BYTES:
        message = f"Invalid 'bytes': an upload has at most {MAX_UPLOAD_BYTES} bytes."
        raise InvalidRequest(message, param="bytes", code="integer_above_max_value")

    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    check_project(call, body.bytes)

    def make(session: Session) -> UploadObject:
        created_at = now()
        upload = Upload(
            id=new_id("upload_"),
            project_id=call.project_id,
            filename=body.filename,
            purpose=body.purpose,
            mime_type=body.mime_type,
            bytes=body.bytes,
            status="pending",
            file_expires_seconds=body.expires_after.seconds if body.expires_after else None,
            created_at=created_at,
            expires_at=created_at + _EXPIRY_SECONDS,
        )
        session.add(upload)
        call.record(session, "upload.create", upload.id, {"bytes": upload.bytes})
        return show_upload(upload, "pending")

    return once.run(fields, make)


@router.post("/uploads/{upload_id}/parts", response_model=PartObject, openapi_extra=_PART_FORM)
async def create_part(request: Request, call: Call, once: Idempotent, upload_id: str) -> Response:
    """Add one part of at most 64 MB. `complete` gives its position in the file."""
    part_id = new_id("part_")
    path = f"uploads/{upload_id}/{part_id}"
    async with once.hold_lease() as lease, receiving(call, request, lease, multipart.MAX_PART_BYTES):
        if not lease.stored:
            await run_in_threadpool(_check_pending, call, upload_id)
        written = None if lease.stored else path
        sink = Sink("data", call.storage, written, multipart.MAX_PART_BYTES)
        form = await receive(request, sink, lease.heartbeat)

        def make(session: Session) -> PartObject:
            _pending(session, call, upload_id)
            _check_room(session, call, upload_id, form.bytes)
            reserve(session, call, form.bytes)
            part = UploadPart(id=part_id, upload_id=upload_id, bytes=form.bytes, path=path, created_at=now())
            session.add(part)
            call.record(session, "upload.part", part_id, {"bytes": form.bytes})
            return show_part(part)

        def complete() -> Response:
            with remove_on_error(call, written):
                return lease.complete({**form.fields, "data": {"sha256": form.sha256}}, make)

        return await run_in_threadpool(complete)


@router.post("/uploads/{upload_id}/complete")
async def complete_upload(call: Call, upload_id: str, body: CompleteUpload) -> UploadObject:
    """Join the parts in the given order. A repeated request for the same parts gets the same answer."""
    async with _assembling.setdefault(upload_id, asyncio.Lock()):  # a repeated request meanwhile copies nothing
        return await run_in_threadpool(_check_and_complete, call, upload_id, body)


def _check_and_complete(call: CallContext, upload_id: str, body: CompleteUpload) -> UploadObject:
    with call.db.read() as session:
        upload = _get(session, call, upload_id)
        if upload.status == "completed":
            return _show_completion(session, upload, body)
        _check_open(upload)
        parts = _parts(session, upload_id, body.part_ids)
    if sum(part.bytes for part in parts) != upload.bytes:
        message = (
            f"The parts have {sum(part.bytes for part in parts)} bytes, the upload was created for {upload.bytes}."
        )
        raise InvalidRequest(message, param="part_ids", code="bytes_mismatch")
    check_disk(call, upload.bytes)  # in the project's bound the file replaces its parts
    try:
        if body.md5 is not None:
            _check_md5(call, upload, parts, body.md5)
        file = _assemble(call, upload, parts)
    except NotFound as error:  # parts are removed when the upload ends
        return _repeat_answer(call, upload_id, body, error)
    with remove_on_error(call, file.path), call.db.write() as session:
        shown = _complete(session, call, upload, body, file)
    if shown is None:
        remove_objects(call.storage, [file.path])
        return _repeat_answer(call, upload_id, body)
    remove_objects(call.storage, [f"uploads/{upload_id}"])
    return shown


@router.post("/uploads/{upload_id}/cancel")
def cancel_upload(call: Call, upload_id: str) -> UploadObject:
    """Cancel an upload, and delete its parts."""
    with call.db.write() as session:
        upload = _get(session, call, upload_id, lock=True)
        if upload.status != "cancelled":
            _check_open(upload)
            upload.status = "cancelled"
            call.record(session, "upload.cancel", upload_id)
        shown = show_upload(upload, "cancelled")
    remove_objects(call.storage, [f"uploads/{upload_id}"])
    return shown


def _get(session: Session, call: CallContext, upload_id: str, *, lock: bool = False) -> Upload:
    statement = select(Upload).where(Upload.id == upload_id, Upload.project_id == call.project_id)
    upload = session.scalar(statement.with_for_update() if lock else statement)
    if upload is None:
        raise NotFound(f"No such Upload object: {clip(upload_id)}", param="upload_id")
    return upload


def _check_open(upload: Upload) -> None:
    if upload.status == "expired" or (upload.status == "pending" and upload.expires_at <= now()):
        raise Expired(f"Upload '{upload.id}' has expired.")
    if upload.status != "pending":
        raise Conflict(f"Upload '{upload.id}' is {upload.status}.", code="upload_not_pending")


def _pending(session: Session, call: CallContext, upload_id: str) -> None:
    """Lock the upload, so that no part is added while it is completed."""
    _check_open(_get(session, call, upload_id, lock=True))


def _check_pending(call: CallContext, upload_id: str) -> None:
    with call.db.read() as session:
        _check_open(_get(session, call, upload_id))
        _check_room(session, call, upload_id, 1)


def _check_room(session: Session, call: CallContext, upload_id: str, more: int) -> None:
    """Check that all parts together stay below about twice the upload's size.

    The limit is not the size itself, because a part may be sent again under another id.
    Raises: InvalidRequest.
    """
    max_bytes = 2 * _get(session, call, upload_id).bytes + multipart.MAX_PART_BYTES
    parts = session.scalar(select(func.sum(UploadPart.bytes)).where(UploadPart.upload_id == upload_id))
    if int(parts or 0) + more > max_bytes:
        message = f"The parts of this upload would have more than {max_bytes} bytes, far more than it was created for."
        raise InvalidRequest(message, param="data", code="too_many_parts")


def _parts(session: Session, upload_id: str, ids: list[str]) -> list[UploadPart]:
    """Return the named parts in that order.

    Raises: InvalidRequest, if one is unknown or named twice.
    """
    known = {part.id: part for part in session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id))}
    seen: set[str] = set()
    for part_id in ids:
        if part_id not in known:
            message = f"The upload has no part '{clip(part_id)}'."
            raise InvalidRequest(message, param="part_ids", code="part_not_found")
        if part_id in seen:
            message = f"Part '{part_id}' is named twice."
            raise InvalidRequest(message, param="part_ids", code="duplicate_part")
        seen.add(part_id)
    return [known[part_id] for part_id in ids]


def _check_md5(call: CallContext, upload: Upload, parts: list[UploadPart], md5: str) -> None:
    """Check the MD5 of the parts before anything is written.

    Raises: InvalidRequest.
    """
    digest = hashlib.md5(usedforsecurity=False)
    for data in _read(call, parts):
        digest.update(data)
    if digest.hexdigest() == md5.lower():
        return
    message = f"The MD5 of the parts is {digest.hexdigest()}."
    if _cancelled_by_mismatch(call, upload.id):
        remove_objects(call.storage, [f"uploads/{upload.id}"])
        message += f" The upload is cancelled: {_MD5_MISMATCHES} completions had a wrong MD5."
    raise InvalidRequest(message, param="md5", code="md5_mismatch")


def _cancelled_by_mismatch(call: CallContext, upload_id: str) -> bool:
    """Count a completion with a wrong MD5, and cancel the upload after too many; return whether it was cancelled."""
    with call.db.write() as session:
        upload = _get(session, call, upload_id, lock=True)
        upload.md5_mismatches += 1
        if upload.status != "pending" or upload.md5_mismatches < _MD5_MISMATCHES:
            return False
        upload.status = "cancelled"
        call.record(session, "upload.cancel", upload_id, {"md5_mismatches": upload.md5_mismatches})
        return True


def _read(call: CallContext, parts: list[UploadPart]) -> Iterator[bytes]:
    for part in parts:
        with call.storage.reader(part.path) as handle:
            while data := handle.read(CHUNK):
                yield data


def _assemble(call: CallContext, upload: Upload, parts: list[UploadPart]) -> File:
    """Write the parts as one object, and return its row."""
    file_id = new_id("file-")
    path = f"files/{file_id}"
    sha256 = hashlib.sha256()
    with call.storage.writer(path) as out:
        for data in _read(call, parts):
            sha256.update(data)
            out.write(data)
    created_at = now()
    return File(
        id=file_id,
        project_id=call.project_id,
        purpose=upload.purpose,
        filename=upload.filename,
        bytes=upload.bytes,
        sha256=sha256.hexdigest(),
        path=path,
        created_at=created_at,
        expires_at=expiry(call.config, upload.purpose, upload.file_expires_seconds, created_at),
    )


def _complete(
    session: Session, call: CallContext, upload: Upload, body: CompleteUpload, file: File
) -> UploadObject | None:
    """Complete the upload; return None if another request has ended it."""
    completion = (
        update(Upload)
        .where(Upload.id == upload.id, Upload.status == "pending")
        .values(status="completed", file_id=file.id, parts_sha256=body.parts_sha256)
    )
    if execute_and_count(session, completion) != 1:
        return None
    insert(session, call, file)
    call.record(session, "upload.complete", upload.id, {"file_id": file.id})
    return show_upload(upload, "completed", file)


def _repeat_answer(
    call: CallContext, upload_id: str, body: CompleteUpload, cause: NotFound | None = None
) -> UploadObject:
    """Answer a completion whose upload another request ended meanwhile: a repeated `complete` gets the same answer.

    Raises InvalidRequest if the first completion named other parts, Conflict if the upload was cancelled, and NotFound
    if parts are missing although no request ended the upload.
    """
    with call.db.read() as session:
        upload = _get(session, call, upload_id)
        if upload.status == "completed":
            return _show_completion(session, upload, body)
        _check_open(upload)
    raise NotFound("Parts of the upload are not stored any more.", param="part_ids") from cause


def _show_completion(session: Session, upload: Upload, body: CompleteUpload) -> UploadObject:
    """Return the completed upload.

    Raises: InvalidRequest, if it was completed with other parts.
    """
    if upload.parts_sha256 not in (None, body.parts_sha256):
        message = f"Upload '{upload.id}' was completed with other parts."
        raise InvalidRequest(message, param="part_ids", code="upload_completed")
    return show_upload(upload, "completed", session.get(File, upload.file_id))
