"""Fine-tuning jobs: their kind, how one is submitted, paused, and what happens when one ends."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import Conflict
from jobs.files.tables import File
from jobs.finetuning import datasets, training_events
from jobs.finetuning.names import JOB_PREFIX, model_name
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import Dataset, FinetuneCheckpoint, FinetuneData, FinetuneEvent, FinetunePlan
from jobs.ids import new_id
from jobs.ledger import ledger, pauses
from jobs.ledger.kinds import Kind, Retry, StorageFolder
from jobs.ledger.pauses import Scope
from jobs.ledger.states import CLOSING, LIVE, TERMINAL, JobState
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.registry.tables import TunedModel
from jobs.security.tables import Project
from jobs.usage.project_limits import limit_of

NAME: Final = "finetuning"
EVENTS: Final[dict[str, str]] = {
    "succeeded": "fine_tuning.job.succeeded",
    "failed": "fine_tuning.job.failed",
    "cancelled": "fine_tuning.job.cancelled",
}
#: The folder of checkpoints and results: `training/<job>/<step>`.
FOLDER: Final = "training"
_TOLD_PAUSES: Final = 100


def submit(
    session: Session,
    payload: FineTuning,
    *,
    job_id: str,
    project_id: str,
    training_file: File,
    actor: str,
    metadata: dict[str, str] | None = None,
    after: Sequence[str] = (),
    **columns: Any,
) -> Job:
    """Submit a job with the rows of its data, in the caller's transaction. Raises InvalidRequest for `after`."""
    job = Job(
        id=job_id,
        project_id=project_id,
        kind=NAME,
        payload=payload.to_payload(),
        input_file_id=training_file.id,
        input_path=training_file.path,
        **FINETUNING.times(now()),
        **columns,
    )
    if metadata is not None:  # JSON null is not NULL
        job.metadata_ = metadata
    ledger.submit(session, job, actor=actor, after=after)
    roles = {
        datasets.TRAINING: training_file.id,
        datasets.VALIDATION: payload.validation_file,
        datasets.GENERAL: payload.general_file,
    }
    session.add_all(
        FinetuneData(job_id=job.id, role=role, file_id=file_id) for role, file_id in roles.items() if file_id
    )
    training_events.record(session, job.id, f"Created fine-tuning job: {job.id}")
    training_events.record(session, job.id, f"Validating training file: {training_file.id}")
    return job


def pause(session: Session, job: Job, *, actor: str) -> bool:
    """Hold a locked job back: nothing of it is begun, and its trainer stops after a checkpoint.

    Return False when the job was paused already. Raises Conflict when it has ended or is ending.
    """
    _check_live(job, "pause")
    paused = pauses.pause(session, Scope.JOB, job.id, actor=actor)
    if paused:
        _tell(session, job, "The job is paused.")
    return paused


def resume(session: Session, job: Job, *, actor: str) -> bool:
    """Let a locked job go on; return False when it was not paused. Raises Conflict when it has ended or is ending."""
    _check_live(job, "resume")
    resumed = pauses.resume(session, Scope.JOB, job.id, actor=actor)
    if resumed:
        _tell(session, job, "The job goes on.")
    return resumed


def _tell(session: Session, job: Job, message: str) -> None:
    """Record an event of a pause, unless it happened very often: pauses cost a client nothing, and events stay."""
    if training_events.count(session, job.id, message) < _TOLD_PAUSES:
        training_events.record(session, job.id, message)


def _check_live(job: Job, verb: str) -> None:
    state = JobState(job.state)
    if state in TERMINAL or state in CLOSING:
        raise Conflict(f"Cannot {verb} a fine-tuning job in state '{state}'.", code="invalid_state")


def _record_end(session: Session, job: Job) -> None:
    """Tell of the end of a job, and remove its pause."""
    pauses.forget_job(session, job.id)
    if job.state == JobState.SUCCEEDED:
        payload = FineTuning.model_validate(job.payload)
        if not payload.dry_run:
            training_events.record(session, job.id, f"New fine-tuned model created: {payload.result}")
        training_events.record(session, job.id, "The job has successfully completed")
    elif job.state == JobState.FAILED:
        first = (job.errors or [{}])[0]
        message = f"The job failed: {first.get('message') or 'an internal error.'}"
        training_events.record(session, job.id, message, level="error")
    else:
        training_events.record(session, job.id, "The job was cancelled.")


def _retry(session: Session, request: Retry) -> Job:
    """Submit a fine-tuning job again; its training goes on from the last checkpoint of the old one."""
    old = request.job
    request.check_unchanged("fine-tuning job", "failed", "all")
    limit = limit_of(session, request.config, old.project_id, "finetune_jobs")
    ledger.check_room(session, old.project_id, NAME, limit)
    payload = FineTuning.model_validate(old.payload)
    job_id, project = new_id(JOB_PREFIX), session.get_one(Project, old.project_id).name
    result = model_name(payload.base, project, payload.suffix, job_id)
    return submit(
        session,
        payload.model_copy(update={"result": result, "resumed_from": old.id}),
        job_id=job_id,
        project_id=old.project_id,
        training_file=request.lock_input(session),
        actor=request.actor,
        metadata=old.metadata_,
        **request.columns,
    )


#: The snapshots that live jobs and models of each project need, each once.
_MODEL = exists().where(TunedModel.job_id == Job.id, TunedModel.deleted_at.is_(None), TunedModel.data_erased.is_(False))
_NEEDED_DATA = (
    select(Job.project_id, FinetuneData.sha256)
    .join(FinetuneData, FinetuneData.job_id == Job.id)
    .where(or_(Job.state.in_(LIVE), _MODEL))
    .distinct()
    .subquery()
)
_CHECKPOINT = and_(
    FinetuneCheckpoint.job_id == TunedModel.job_id, FinetuneCheckpoint.step == TunedModel.checkpoint_step
)

FINETUNING: Final = Kind(
    NAME,
    "Fine-tuning",
    JOB_PREFIX,
    FineTuning,
    EVENTS,
    resources=("fine_tuning", "models", "files"),
    permission="api.fine_tuning.write",
    run_queue=Queue.FINETUNE,
    window=None,
    retry=_retry,
    slot_weight=1.0,
    counted=False,
    has_lines=False,
    folders=(StorageFolder(FOLDER, Job.id, flat=False), StorageFolder(datasets.FOLDER, Dataset.sha256, flat=True)),
    stored_bytes={
        "datasets": select(_NEEDED_DATA.c.project_id, func.sum(Dataset.bytes))
        .join(Dataset, Dataset.sha256 == _NEEDED_DATA.c.sha256)
        .group_by(_NEEDED_DATA.c.project_id),
        "checkpoints": select(TunedModel.project_id, func.sum(FinetuneCheckpoint.bytes))
        .join(FinetuneCheckpoint, _CHECKPOINT)
        .where(TunedModel.location != "")  # its files are gone
        .group_by(TunedModel.project_id),
    },
    holds=datasets.is_read,
    named_by=(FinetuneData.job_id, FinetunePlan.job_id, FinetuneEvent.job_id),
    ended=_record_end,
)
