"""Monitors of drift: the texts that they compare, and the jobs that sample, embed and compare these.

    baseline   a job that samples the texts of a baseline and stores their features
    check ──after──▶ baseline     a job that samples the texts of now, and compares their features with the stored ones

The lines of both are requests for embeddings. A job of either kind is planned again with the same sample.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from jobs.batches.lines import quote
from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.files import lookup
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.inference.answer_queries import select_answers
from jobs.inference.tables import StoredCompletion, StoredResponse
from jobs.ledger import ledger
from jobs.ledger.kinds import Kind, Payload, StorageFolder
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job
from jobs.monitoring.tables import DriftCheck, DriftMonitor
from jobs.requests.endpoints import EMBEDDINGS

NAME: Final = "drift_check"
PERMISSION: Final = "api.monitoring.write"
PREFIX: Final = "driftcheck_"
MONITOR_PREFIX: Final = "driftmon_"
FOLDER: Final = "drift"
#: The event of a check that found drift, in the place of the one that tells of its completion.
DETECTED: Final = "drift.detected"

FILE_FIELD: Final = "source.file_id"

#: Of one sample. Less texts than the first show nothing; distances between more than the second take too long.
MIN_TEXTS: Final = 50
MAX_TEXTS: Final = 2_000
#: Monitors of a project, checks of a monitor that are kept, and jobs of a project that have not ended.
MAX_MONITORS: Final = 100
MAX_CHECKS: Final = 1_000
MAX_LIVE: Final = 100


class AnswerSource(BaseModel):
    """Stored answers of the project that match each given field. Times are Unix seconds, the second is exclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["stored_completions", "responses"]
    model: str | None = None
    metadata: dict[str, str] | None = None
    created_after: float | None = None
    created_before: float | None = None


class TextFile(BaseModel):
    """A file with a text on each line, `{"input": …}`, and its scores where there are any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["file"]
    file_id: str


Source = Annotated[AnswerSource | TextFile, Field(discriminator="type")]
parse_source: Final = TypeAdapter[AnswerSource | TextFile](Source).validate_python


class DriftRequest(BaseModel):
    """A checked request for a check or a baseline of a monitor, over its own source where `source` is null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    monitor_id: str
    source: Source | None = None


class DriftSample(Payload):
    """Sample `sample` texts of `source`, and compare them with those of the job `baseline_id` where it is set.

    The job of a baseline has none. `path` is that of the source's file.
    """

    monitor_id: str
    source: Source
    sample: int
    path: str | None = None
    baseline_id: str | None = None


def find(session: Session, project_id: str, monitor_id: str, *, lock: bool = False) -> DriftMonitor:
    """Return a monitor of a project. Raises NotFound."""
    query = select(DriftMonitor).where(DriftMonitor.project_id == project_id, DriftMonitor.id == monitor_id)
    monitor = session.scalar(query.with_for_update() if lock else query)
    if monitor is None:
        raise NotFound(f"No drift monitor found with id '{quote(monitor_id)}'.", param="monitor_id")
    return monitor


def baseline_path(job_id: str) -> str:
    """Return where the features of a baseline are stored."""
    return f"{FOLDER}/{job_id}"


def submit_baseline(
    session: Session, monitor: DriftMonitor, source: AnswerSource | TextFile | None = None, **columns: Any
) -> Job:
    """Submit the job that makes the baseline of a locked monitor, which later checks compare with.

    It is made over another `source` than the monitor's own where one is given.

    `columns` has the `actor`, the `param` that names a file, and columns of the job.

    Raises: InvalidRequest, TooManyLiveJobs.
    """
    job = _submit(session, monitor, source or parse_source(monitor.source), **columns)
    monitor.baseline_id = job.id
    return job


def submit_check(
    session: Session, monitor: DriftMonitor, source: AnswerSource | TextFile | None = None, **columns: Any
) -> Job:
    """Submit a check of a locked monitor, over another `source` than its own where one is given.

    `columns` has the `actor`, and columns of the job. The oldest check goes where there are too many.

    Raises: Conflict, InvalidRequest, TooManyLiveJobs.
    """
    baseline = session.get_one(Job, monitor.baseline_id)
    if baseline.state not in (*LIVE, JobState.SUCCEEDED):
        message = f"The baseline of monitor '{monitor.id}' ended as {baseline.state}: make another one."
        raise Conflict(message, code="no_baseline")
    after = [baseline.id] if baseline.state in LIVE else []
    _remove_oldest(session, monitor.id)
    source = source or parse_source(monitor.source)
    job = _submit(session, monitor, source, baseline_id=baseline.id, after=after, **columns)
    session.add(DriftCheck(id=job.id, monitor_id=monitor.id, project_id=job.project_id, created_at=job.created_at))
    return job


def _submit(
    session: Session,
    monitor: DriftMonitor,
    source: AnswerSource | TextFile,
    *,
    actor: str,
    param: str = FILE_FIELD,
    baseline_id: str | None = None,
    after: list[str] | None = None,
    **columns: Any,
) -> Job:
    ledger.check_room(session, monitor.project_id, NAME, MAX_LIVE)
    file, at = None, now()
    if isinstance(source, TextFile):
        file = find_file(session, monitor.project_id, source.file_id, param)
    elif source.created_after is None:
        source = source.model_copy(update={"created_after": (source.created_before or at) - monitor.window_seconds})
    payload = DriftSample(
        monitor_id=monitor.id,
        source=source,
        sample=monitor.sample,
        path=file.path if file else None,
        baseline_id=baseline_id,
    )
    job = Job(
        id=new_id(PREFIX),
        project_id=monitor.project_id,
        kind=NAME,
        endpoint=EMBEDDINGS,
        model=monitor.embedding_model,
        payload=payload.model_dump(mode="json", exclude_defaults=True),
        input_file_id=file.id if file else None,
        **KIND.times(at),
        **columns,
    )
    return ledger.submit(session, job, actor=actor, after=after or ())


def find_file(session: Session, project_id: str, file_id: str, param: str = FILE_FIELD, *, lock: bool = True) -> File:
    """Return the file of texts, which `param` names in errors; with `lock`, it stays. Raises InvalidRequest."""
    file = lookup.find(session, project_id, file_id, lock=lock)
    if file is None:
        raise InvalidRequest(f"No file found with id '{quote(file_id)}'.", param=param, code="file_not_found")
    return file


def remove(session: Session, monitor: DriftMonitor, *, actor: str) -> list[str]:
    """Remove a monitor with its checks, and cancel what runs for it; return the objects that are to be deleted."""
    own = [monitor.baseline_id, *session.scalars(select(DriftCheck.id).where(DriftCheck.monitor_id == monitor.id))]
    stoppable = Job.id.in_(own), Job.state.in_((JobState.QUEUED, JobState.RUNNING))
    for job_id in session.scalars(select(Job.id).where(*stoppable).order_by(Job.id)).all():
        with suppress(Conflict):  # it ends at this moment
            ledger.cancel(session, job_id, actor=actor)
    session.execute(delete(DriftCheck).where(DriftCheck.monitor_id == monitor.id))
    session.delete(monitor)
    return [baseline_path(monitor.baseline_id)]


def _remove_oldest(session: Session, monitor_id: str) -> None:
    own = select(DriftCheck.id).where(DriftCheck.monitor_id == monitor_id)
    count = session.scalar(select(func.count()).select_from(own.subquery())) or 0
    if count >= MAX_CHECKS:
        oldest = own.order_by(DriftCheck.created_at, DriftCheck.id).limit(count - MAX_CHECKS + 1)
        session.execute(delete(DriftCheck).where(DriftCheck.id.in_(session.scalars(oldest).all())))


def jobs_by_id(session: Session, job_ids: list[str]) -> Mapping[str, Job]:
    """Return jobs of baselines and checks by their ids."""
    return {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(job_ids)))}


KIND: Final = Kind(
    NAME,
    "Check for drift",
    PREFIX,
    DriftSample,
    {
        "succeeded": "drift.check.completed",
        "failed": "drift.check.failed",
        "cancelled": "drift.check.cancelled",
    },
    other_events={DETECTED: PREFIX},
    resources=("drift_monitors",),
    permission=PERMISSION,
    window=None,
    counted=False,
    has_lines=False,
    folders=(StorageFolder(FOLDER, DriftMonitor.baseline_id, flat=True),),
    named_by=(DriftMonitor.baseline_id, DriftCheck.id),
)


# ── what they look at ──


def find_answers(session: Session, project_id: str, source: AnswerSource) -> Sequence[tuple[str, Any]]:
    """Return the ids and the metadata of the stored answers that match a source, the newest first."""
    table = StoredCompletion if source.type == "stored_completions" else StoredResponse
    times = {"since": source.created_after, "until": source.created_before}
    answers = session.execute(select_answers(table, project_id, model=source.model, **times))
    required = (source.metadata or {}).items()
    return [(name, metadata) for name, metadata in answers if required <= (metadata or {}).items()]
