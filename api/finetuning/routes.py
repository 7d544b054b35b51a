"""Fine-tuning jobs: created, listed, cancelled, paused and resumed; their events and checkpoints."""

from typing import Annotated, Literal, Protocol

from fastapi import Query, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.finetuning.queries import build_request, get_job, jobs_of, standings
from api.finetuning.schemas import (
    Checkpoint,
    CreateFineTuningJob,
    FineTuningEvent,
    FineTuningJob,
    TrainingProgress,
    show_checkpoint,
    show_event,
    show_job,
    show_progress,
)
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Page, find, match_metadata, page
from api.http.space import check_not_full, count_if_due
from jobs.errors import Conflict, InvalidRequest
from jobs.finetuning import jobs, training_curve, training_events, tuning_requests
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint, FinetunePlan
from jobs.ledger import ledger
from jobs.ledger.tables import Job
from jobs.requests.endpoints import FINE_TUNING

router = resource("Fine-tuning", area="fine_tuning")


class _Change(Protocol):
    def __call__(self, session: Session, job: Job, *, actor: str) -> object: ...


@router.post("/fine_tuning/jobs", response_model=FineTuningJob)
def create_fine_tuning_job(call: Call, once: Idempotent, body: CreateFineTuningJob) -> Response:
    """Queue a fine-tuning job. Its files are validated after the answer."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    tuning_request = build_request(call, body)

    def make(session: Session) -> FineTuningJob:
        check_not_full(session, call)
        job = tuning_requests.submit(
            session,
            call.config,
            call.services.registry(),
            tuning_request,
            call.work(body.model, FINE_TUNING),
            actor=call.actor,
            after=body.after or (),
            idempotency_key=once.key,
            request_id=call.request_id,
        )
        return _show_job(session, call, job)

    count_if_due(call)
    return once.run(fields, make)


@router.get("/fine_tuning/jobs")
def list_fine_tuning_jobs(
    request: Request, call: Call, after: After = None, limit: Limit20 = 20
) -> Page[FineTuningJob]:
    """List the project's fine-tuning jobs, the newest first. `metadata[key]=value` selects by metadata."""
    statement = match_metadata(jobs_of(call), Job.metadata_, request.query_params.multi_items(), sqlite=call.db.sqlite)
    with call.db.read() as session:
        rows, more = find(session, statement, Job, after=after, limit=limit, among=jobs_of(call))
        standing = standings(session, call, rows)
    return page(rows, more, lambda job: show_job(job, standing[job.id]))


@router.get("/fine_tuning/jobs/{fine_tuning_job_id}")
def retrieve_fine_tuning_job(call: Call, fine_tuning_job_id: str) -> FineTuningJob:
    """Return a fine-tuning job."""
    with call.db.read() as session:
        return _show_job(session, call, get_job(session, call, fine_tuning_job_id))


@router.post("/fine_tuning/jobs/{fine_tuning_job_id}/cancel")
def cancel_fine_tuning_job(call: Call, fine_tuning_job_id: str) -> FineTuningJob:
    """Stop a job; its checkpoints stay. Cancelling twice is not an error."""
    return _change_job(call, fine_tuning_job_id, "cancel", _cancel)


@router.post("/fine_tuning/jobs/{fine_tuning_job_id}/pause")
def pause_fine_tuning_job(call: Call, fine_tuning_job_id: str) -> FineTuningJob:
    """Hold a job back. Training that runs stops at its next step, after a checkpoint. Pausing twice is not an error."""
    return _change_job(call, fine_tuning_job_id, "pause", jobs.pause)


@router.post("/fine_tuning/jobs/{fine_tuning_job_id}/resume")
def resume_fine_tuning_job(call: Call, fine_tuning_job_id: str) -> FineTuningJob:
    """Let a paused job go on from its last checkpoint. Resuming a job that is not paused is not an error."""
    return _change_job(call, fine_tuning_job_id, "resume", jobs.resume)


@router.get("/fine_tuning/jobs/{fine_tuning_job_id}/events")
def list_fine_tuning_events(
    call: Call,
    fine_tuning_job_id: str,
    after: After = None,
    limit: Limit20 = 20,
    type: Annotated[  # noqa: A002 (the name of the query's field)
        Literal["message", "metrics"] | None, Query(description="Only events of this type; ours.")
    ] = None,
) -> Page[FineTuningEvent]:
    """List the events of a job, the newest first."""
    with call.db.read() as session:
        job = get_job(session, call, fine_tuning_job_id)
        before = training_events.position(session, job.id, after) if after else None
        if after and before is None:
            raise InvalidRequest(f"No object with id '{clip(after)}'.", param="after", code="invalid_cursor")
        rows = training_events.newest(session, job.id, before=before, limit=limit + 1, kind=type)
    return page(rows[:limit], len(rows) > limit, show_event)


@router.get("/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints")
def list_fine_tuning_checkpoints(
    call: Call,
    fine_tuning_job_id: str,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Objects on a page.")] = 10,
) -> Page[Checkpoint]:
    """List the checkpoints of a job, the newest first."""
    with call.db.read() as session:
        job = get_job(session, call, fine_tuning_job_id)
        checkpoints = select(FinetuneCheckpoint).where(FinetuneCheckpoint.job_id == job.id)
        rows, more = find(session, checkpoints, FinetuneCheckpoint, after=after, limit=limit)
    model = FineTuning.model_validate(job.payload).result
    return page(rows, more, lambda checkpoint: show_checkpoint(model, checkpoint))


@router.get("/fine_tuning/jobs/{fine_tuning_job_id}/progress")
def retrieve_fine_tuning_progress(
    call: Call,
    fine_tuning_job_id: str,
    points: Annotated[int, Query(ge=1, le=1000, description="Points of the curve, at most.")] = 300,
) -> TrainingProgress:
    """Return how far a job has come, what it has cost, and its curve of losses."""
    with call.db.read() as session:
        job = get_job(session, call, fine_tuning_job_id)
        return show_progress(session.get(FinetunePlan, job.id), training_curve.read(session, job.id, points))


def _show_job(session: Session, call: CallContext, job: Job) -> FineTuningJob:
    return show_job(job, standings(session, call, [job])[job.id])


def _change_job(call: CallContext, job_id: str, verb: str, change: _Change) -> FineTuningJob:
    """Apply a change to a locked job, and show the job. Raises Conflict, which the SDK does not retry."""
    with call.db.write() as session:
        get_job(session, call, job_id)
        job = ledger.lock(session, job_id)
        assert job is not None
        shown = _show_job(session, call, job)
        try:
            change(session, job, actor=call.actor)
        except Conflict as error:
            message = f"Cannot {verb} a fine-tuning job with status '{shown.status}'."
            raise Conflict(message, code="invalid_state") from error
        after = _show_job(session, call, job)
        if after.status != shown.status:
            call.record(session, f"fine_tuning.job.{verb}", job.id)
        return after


def _cancel(session: Session, job: Job, *, actor: str) -> None:
    ledger.cancel(session, job.id, actor=actor)
