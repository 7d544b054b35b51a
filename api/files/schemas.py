"""Files and uploads in OpenAI's shapes."""

from typing import Literal

from pydantic import BaseModel

from jobs.files.tables import File, Upload, UploadPart

#: The purposes that a client may name. OpenAI's `status` is deprecated but required: SDK helpers wait for it.
Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class UploadObject(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class PartObject(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


def show_file(file: File) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
    )


def show_upload(upload: Upload, status: str, file: File | None = None) -> UploadObject:
    """Return an upload with `status`, which the caller computes: an upload expires before retention sets it."""
    return UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=int(upload.created_at),
        expires_at=int(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=status,
        file=show_file(file) if file else None,
    )


def show_part(part: UploadPart) -> PartObject:
    return PartObject(id=part.id, created_at=int(part.created_at), upload_id=part.upload_id)
