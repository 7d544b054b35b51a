"""Tables of files and multi-part uploads. Bytes are in storage at `path`; a row is written after its bytes."""

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from jobs.db.base import Base


class File(Base):
    """A file as OpenAI shows it. With `deleted_at` it is hidden; its bytes are removed when no live job reads them."""

    __tablename__ = "file"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(32))
    filename: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str | None] = mapped_column(String(64))
    path: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    deleted_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_file_project_created", "project_id", "created_at", "id"),
        Index("ix_file_project_purpose", "project_id", "purpose", "created_at", "id"),
        Index("ix_file_expires", "expires_at"),
        Index("ix_file_deleted", "deleted_at"),
        Index("ix_file_project_bytes", "project_id", "bytes"),
    )


class Upload(Base):
    """A multi-part upload: pending → completed | cancelled | expired.

    `md5_mismatches` counts the completions that were refused for a wrong MD5. `parts_sha256` is a hash of the part ids
    of a completed upload, in order; None if it was completed before this column existed.
    """

    __tablename__ = "upload"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str]
    purpose: Mapped[str] = mapped_column(String(32))
    mime_type: Mapped[str]
    bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default="pending")
    file_id: Mapped[str | None] = mapped_column(String(64))
    file_expires_seconds: Mapped[int | None]
    md5_mismatches: Mapped[int] = mapped_column(default=0, server_default="0")
    parts_sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float]
    expires_at: Mapped[float]

    __table_args__ = (
        Index("ix_upload_status_expires", "status", "expires_at"),
        Index("ix_upload_project_status", "project_id", "status"),
    )


class UploadPart(Base):
    """A part of an upload. Parts may arrive in any order; the call `complete` names the order of the content."""

    __tablename__ = "upload_part"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(String(64), index=True)
    bytes: Mapped[int]
    path: Mapped[str]
    created_at: Mapped[float]
