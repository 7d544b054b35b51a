"""Pipelines: created, listed, cancelled and resumed."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from fastapi.responses import Response
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, find, page
from api.http.space import check_not_full, count_if_due
from api.jobs.retry import submit_retry
from api.pipelines.schemas import CreatePipeline, PipelineObject, PipelineStatus, show_pipeline, states_of, status_of
from api.pipelines.step_requests import define_steps
from jobs.errors import InvalidRequest, NotFound
from jobs.ledger.kinds import Retry
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from jobs.pipelines import pipelines

router = resource("Pipelines", area="pipelines")
Status = Annotated[PipelineStatus | None, Query(description="Only pipelines of this status.")]


@router.post("/pipelines", response_model=PipelineObject)
def create_pipeline(call: Call, once: Idempotent, body: CreatePipeline) -> Response:
    """Create a pipeline, whose steps are run as soon as those that they wait for have completed."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    definitions = define_steps(call, body.steps)

    def make(session: Session) -> PipelineObject:
        check_not_full(session, call)
        job = pipelines.submit(
            session,
            definitions,
            project_id=call.project_id,
            actor=call.actor,
            name=body.name,
            metadata=body.metadata,
            idempotency_key=once.key,
            request_id=call.request_id,
        )
        call.record(session, "pipeline.create", job.id)
        return _show(session, [job])[0]

    count_if_due(call)
    return once.run(fields, make)


@router.get("/pipelines")
def list_pipelines(
    call: Call, after: After = None, limit: Limit20 = 20, order: Order = "desc", status: Status = None
) -> Page[PipelineObject]:
    """List the project's pipelines, with their steps."""
    listed = _pipelines_of(call)
    if status is not None:
        listed = listed.where(Job.state.in_(states_of(status)))
    with call.db.read() as session:
        rows, more = find(session, listed, Job, after=after, limit=limit, order=order)
        shown = {pipeline.id: pipeline for pipeline in _show(session, rows)}
    return page(rows, more, lambda job: shown[job.id])


@router.get("/pipelines/{pipeline_id}")
def retrieve_pipeline(call: Call, pipeline_id: str) -> PipelineObject:
    """Return one pipeline, with the state of each step."""
    with call.db.read() as session:
        return _show(session, [_get(session, call, pipeline_id)])[0]


@router.post("/pipelines/{pipeline_id}/cancel")
def cancel_pipeline(call: Call, pipeline_id: str) -> PipelineObject:
    """Stop a pipeline and the jobs of its steps, within seconds. Cancelling twice is not an error."""
    with call.db.write() as session:
        job = call.cancel(session, _get(session, call, pipeline_id), "pipeline.cancel", _refusal)
        return _show(session, [job])[0]


@router.post("/pipelines/{pipeline_id}/resume", response_model=PipelineObject)
def resume_pipeline(call: Call, once: Idempotent, pipeline_id: str) -> Response:
    """Run the steps of an ended pipeline that have not completed, in a new pipeline that keeps the completed ones."""

    def make(session: Session) -> PipelineObject:
        old = _get(session, call, pipeline_id)
        if old.state == JobState.SUCCEEDED:
            raise InvalidRequest(f"All steps of pipeline '{old.id}' have completed.", code="nothing_to_retry")
        request = Retry(
            job=old,
            which="failed",
            overrides={},
            window=None,
            priority=None,
            key=once.key,
            request_id=call.request_id,
            actor=call.actor,
            config=call.config,
        )
        job = submit_retry(session, call, request)
        call.record(session, "pipeline.resume", old.id, {"resumed_as": job.id})
        return _show(session, [job])[0]

    count_if_due(call)
    return once.run({}, make)


def _refusal(job: Job) -> str:
    return f"Cannot cancel a pipeline with status '{status_of(job)}'."


def _pipelines_of(call: CallContext) -> Select[Job]:
    return select(Job).where(Job.project_id == call.project_id, Job.kind == pipelines.NAME)


def _get(session: Session, call: CallContext, pipeline_id: str) -> Job:
    job = session.scalar(_pipelines_of(call).where(Job.id == pipeline_id))
    if job is None:
        raise NotFound(f"No pipeline found with id '{clip(pipeline_id)}'.", param="pipeline_id")
    return job


def _show(session: Session, jobs: Sequence[Job]) -> list[PipelineObject]:
    """Return pipelines as clients see them. The requests of the steps, which may be large, are not read."""
    ids = [entry.id for job in jobs for entry in pipelines.Pipeline.model_validate(job.payload).steps]
    columns = (Job.id, Job.parent_id, Job.state, Job.errors)
    steps = {row.id: row for row in session.execute(select(*columns).where(Job.id.in_(ids)))}
    made = {str(row.parent_id): row for row in session.execute(select(*columns).where(Job.parent_id.in_(ids)))}
    return [show_pipeline(job, steps, made) for job in jobs]
