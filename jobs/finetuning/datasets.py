"""Snapshots of training data: immutable bytes under their SHA-256, and the files that jobs and models hold.

file ──planning──▶ datasets/<sha256>      stays while a live job or a model that is not deleted names it
"""

from typing import Final

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.finetuning.tables import Dataset, FinetuneData
from jobs.ledger.states import LIVE
from jobs.ledger.tables import Job
from jobs.registry.models import DELETED
from jobs.registry.tables import TunedModel

FOLDER: Final = "datasets"
TRAINING: Final = "training"
VALIDATION: Final = "validation"
GENERAL: Final = "general"
_UNTOUCHED_SECONDS: Final = 3600.0


def location(sha256: str) -> str:
    """Return where a snapshot lies in storage."""
    return f"{FOLDER}/{sha256}"


def add(session: Session, job_id: str, role: str, file_id: str, *, sha256: str, size: int, rows: int) -> None:
    """Note that a job reads a snapshot, whose bytes are stored, in a role. Called twice, it changes nothing."""
    snapshot = {"sha256": sha256, "bytes": size, "location": location(sha256), "created_at": now()}
    insert = insert_into(session, Dataset).values(snapshot)
    renewed = {"created_at": snapshot["created_at"]}  # so that nobody removes it as unused meanwhile
    session.execute(insert.on_conflict_do_update(index_elements=["sha256"], set_=renewed))
    reads = {"job_id": job_id, "role": role, "file_id": file_id, "sha256": sha256, "rows": rows}
    session.execute(
        insert_into(session, FinetuneData)
        .values(reads)
        .on_conflict_do_update(index_elements=["job_id", "role"], set_={"sha256": sha256, "rows": rows})
    )


def data_of_job(session: Session, job_id: str) -> dict[str, FinetuneData]:
    """Return what a job reads, by role."""
    rows = session.scalars(select(FinetuneData).where(FinetuneData.job_id == job_id))
    return {row.role: row for row in rows}


def is_read(file_id: SQLColumnExpression[str] | str) -> ColumnElement[bool]:
    """Return the condition that a live job trains or validates on the file."""
    job = Job.id == FinetuneData.job_id, Job.state.in_(LIVE)
    return exists().where(FinetuneData.file_id == file_id, *job)


def holders(session: Session, file_id: str) -> list[str]:
    """Return the live jobs and the models that name the file: their ids and names, ten at most."""
    reads = FinetuneData.file_id == file_id
    jobs = select(FinetuneData.job_id).join(Job, Job.id == FinetuneData.job_id).where(reads, Job.state.in_(LIVE))
    models = select(TunedModel.name).join(FinetuneData, FinetuneData.job_id == TunedModel.job_id)
    models = models.where(reads, _holds_data()).order_by(TunedModel.name)
    return list(dict.fromkeys([*session.scalars(jobs.limit(10)), *session.scalars(models.limit(10))]))[:10]


def erase(session: Session, file_id: str) -> None:
    """Mark the models that were trained on the file: their data is erased, and holds nothing any more."""
    trained = select(FinetuneData.job_id).where(FinetuneData.file_id == file_id)
    session.execute(update(TunedModel).where(TunedModel.job_id.in_(trained), _holds_data()).values(data_erased=True))


def remove_unused(session: Session, limit: int) -> int:
    """Remove rows of `dataset` that nothing has needed for an hour; return how many.

    Their bytes are removed as orphans: a job that is planned at this moment may be about to name them again.
    """
    old = and_(_is_unused(), Dataset.created_at < now() - _UNTOUCHED_SECONDS)
    rows = session.scalars(select(Dataset.sha256).where(old).limit(limit)).all()
    session.execute(delete(Dataset).where(Dataset.sha256.in_(rows), old))
    return len(rows)


def _is_unused() -> ColumnElement[bool]:
    """Return the condition that no live job and no model needs a row of `dataset`."""
    reads = FinetuneData.sha256 == Dataset.sha256
    live = exists().where(reads, Job.id == FinetuneData.job_id, Job.state.in_(LIVE))
    held = exists().where(reads, TunedModel.job_id == FinetuneData.job_id, _holds_data())
    return ~or_(live, held)


def _holds_data() -> ColumnElement[bool]:
    return and_(TunedModel.state != DELETED, TunedModel.data_erased.is_(False))
