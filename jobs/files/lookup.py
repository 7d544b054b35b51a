"""Find the files of a project: those that are neither deleted nor expired."""

from sqlalchemy import ColumnElement, Select, exists, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.files.tables import File
from jobs.schedules.tables import Schedule, ScheduleFile


def has_schedule() -> ColumnElement[bool]:
    """Return the condition that a schedule names a file, which therefore does not expire."""
    named = (Schedule.input_file_id == File.id, ScheduleFile.file_id == File.id)
    return or_(*(exists().where(condition) for condition in named))


def visible(project_id: str) -> Select[File]:
    """Return the statement of the files that a project may see."""
    return select(File).where(
        File.project_id == project_id,
        File.deleted_at.is_(None),
        or_(File.expires_at.is_(None), File.expires_at > now(), has_schedule()),
    )


def find(session: Session, project_id: str, file_id: str, *, lock: bool = True) -> File | None:
    """Return a file that a job is to read, if there is one; with `lock`, its bytes stay for the job of this call."""
    statement = visible(project_id).where(File.id == file_id)
    return session.scalar(statement.with_for_update(read=True) if lock else statement)
