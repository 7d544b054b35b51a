"""Jobs of all kinds, as the ledger has them: progress, events, cancel, retry."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.batches.schemas import STATUS
from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Order, Page, find, match_metadata, page
from api.http.space import count_if_due
from api.http.sse import EVENT_STREAM, LastEventId, event_stream, position_of
from api.jobs.names import names_of
from api.jobs.retry import submit_retry
from api.jobs.schemas import (
    JobEvent,
    JobGraph,
    JobObject,
    JobShards,
    ModelStatus,
    ShardPart,
    StateOrStatus,
    show_event,
    show_graph,
    show_job,
)
from api.jobs.selection import select_jobs
from api.jobs.streams import follow_events
from api.shares import open_stream, run_in_threadpool
from api.webhooks.queries import delivery_page
from api.webhooks.schemas import DeliveryObject
from jobs.errors import NotFound
from jobs.fleet import workers
from jobs.ledger import dependencies, events
from jobs.ledger.kinds import Retry, Which
from jobs.ledger.progress import outcomes, pace, queue_position, shard_parts, totals, worked_seconds
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job
from jobs.webhooks import replays
from jobs.webhooks.tables import Delivery

router = resource("Jobs", area="jobs")
_EDGES = 500  # of a graph at most

_EVENTS_DOC: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of events, or, with `Accept: text/event-stream`, each as it happens",
        "content": {EVENT_STREAM: {"schema": {}}},
    }
}


class EventPage(BaseModel):
    """Events after a `seq`, oldest first."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


class RetryJob(Body):
    """The lines of the new job, and its changes."""

    which: Which = Field(
        default="failed",
        description="`failed`: the lines that failed or are missing. `length`: those whose answer was cut off at the "
        "token limit. `all`: every line.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Laid over the body of each line; at most 64 KB."
    )
    completion_window: str | None = Field(default=None, max_length=16, description="As of a new batch.")
    priority: int | None = Field(default=None, ge=-100, le=100)


@router.get("/jobs")
def list_jobs(
    request: Request,
    call: Call,
    after: After = None,
    limit: Limit20 = 20,
    order: Order = "desc",
    kind: Annotated[str | None, Query(max_length=32)] = None,
    state: Annotated[StateOrStatus | None, Query(description="As `state` or as `status` shows it.")] = None,
    schedule_id: Annotated[str | None, Query(max_length=64)] = None,
    idempotency_key: Annotated[str | None, Query(min_length=1, max_length=255)] = None,
    model: Annotated[str | None, Query(max_length=255, description="The model that the requests name.")] = None,
    since: Annotated[int, Query(ge=0, lt=1 << 40, description="Created at this time or later, in Unix seconds.")] = 0,
    until: Annotated[int | None, Query(ge=0, lt=1 << 40, description="Created before this time.")] = None,
    file_id: Annotated[str | None, Query(max_length=64, description="Its input, its output or its errors.")] = None,
) -> Page[JobObject]:
    """List the project's jobs.

    `metadata[key]=value`, up to 16 times, selects jobs by metadata; `metadata=null` selects jobs without metadata.
    Metadata has no index: the jobs that the other filters select are read, the newest first, until the page is full.
    Where few of a great many have such metadata, `since` bounds that.
    """
    statement = select_jobs(
        call.project_id,
        file_id=file_id,
        states=[job_state for job_state in JobState if state in (job_state, STATUS[job_state])],
        kind=kind,
        model=model,
        schedule_id=schedule_id,
        idempotency_key=idempotency_key,
    )
    statement = statement.where(Job.created_at >= since) if since else statement
    if until is not None:
        statement = statement.where(Job.created_at < until)
    statement = match_metadata(statement, Job.metadata_, request.query_params.multi_items(), sqlite=call.db.sqlite)
    with call.db.read() as session:
        # the last job of a page may have changed its state or metadata since
        rows, more = find(session, statement, Job, after=after, limit=limit, order=order, among=jobs_of(call))
        sums, after_ids = totals(session, rows), dependencies.predecessors(session, rows)
        models, names = model_statuses(session, call, rows), names_of(session, call, rows)

    def show(job: Job) -> JobObject:
        return show_job(job, sums[job.id], after_ids[job.id], models.get(job.id), name=names.get(job.id))

    return page(rows, more, show)


@router.get("/jobs/{job_id}")
def retrieve_job(call: Call, job_id: str) -> JobObject:
    """Return one job, with its pace, its estimated time and its position in the queue."""
    with call.db.read() as session:
        return _show_whole_job(session, call, get_job(session, call, job_id))


@router.get("/jobs/{job_id}/graph")
def job_graph(call: Call, job_id: str) -> JobGraph:
    """Return a job with the jobs that it waits for and the jobs that wait for it, directly or through others."""
    with call.db.read() as session:
        get_job(session, call, job_id)
        edges = dependencies.edges_around(session, job_id, _EDGES + 1)
        ids = {job_id}.union(*edges[:_EDGES])
        jobs = session.scalars(jobs_of(call).where(Job.id.in_(ids)).order_by(Job.created_at, Job.id)).all()
        return show_graph(job_id, jobs, edges[:_EDGES], truncated=len(edges) > _EDGES)


@router.get("/jobs/{job_id}/shards")
def job_shards(
    call: Call, job_id: str, parts: Annotated[int, Query(ge=1, le=1000, description="Parts at most.")] = 100
) -> JobShards:
    """Return how far each part of a job's input is: its shards in order, neighbours summed to at most `parts` parts.

    A job that ended long ago, or that has no lines, has no shards.
    """
    with call.db.read() as session:
        get_job(session, call, job_id)
        count, rows = shard_parts(session, job_id, parts)
    return JobShards(job_id=job_id, shards=count, data=[ShardPart(**row._asdict()) for row in rows])


@router.get("/jobs/{job_id}/events", response_model=EventPage, responses=_EVENTS_DOC)
async def job_events(
    request: Request,
    call: Call,
    job_id: str,
    after: Annotated[int, Query(ge=0, lt=1 << 62, description="The `seq` of the last event known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
    last_event_id: LastEventId = None,
) -> Response:
    """List the events of a job: a page, or a stream that ends with the job."""
    after = position_of(last_event_id, after)

    def look() -> EventPage:
        with call.db.read() as session:
            get_job(session, call, job_id)
            rows = events.after(session, job_id, after, limit + 1)
            return EventPage(data=[show_event(event) for event in rows[:limit]], has_more=len(rows) > limit)

    first = await run_in_threadpool(look)
    if EVENT_STREAM not in request.headers.get("accept", ""):
        return Response(first.model_dump_json(), media_type="application/json")
    open_stream()
    return event_stream(follow_events(call, job_id, after), {"Cache-Control": "no-store"})


@router.get("/jobs/{job_id}/deliveries")
def job_deliveries(
    call: Call, job_id: str, after: After = None, limit: Limit20 = 20, order: Order = "desc"
) -> Page[DeliveryObject]:
    """List the deliveries to the job's own webhook, with all attempts."""
    with call.db.read() as session:
        job = get_job(session, call, job_id)
        return delivery_page(session, _deliveries(call, job), after=after, limit=limit, order=order)


@router.post("/jobs/{job_id}/deliveries/{delivery_id}/replay")
def replay_delivery(call: Call, job_id: str, delivery_id: str) -> DeliveryObject:
    """Send a delivery to the job's own webhook again, under its former `webhook-id`."""
    with call.db.write() as session:
        statement = _deliveries(call, get_job(session, call, job_id))
        if session.scalar(statement.where(Delivery.id == delivery_id)) is None:
            raise NotFound(f"No delivery found with id '{clip(delivery_id)}'.", param="delivery_id")
        replays.replay(session, call.project_id, None, replays.Selection(ids=(delivery_id,)))
        call.record(session, "job.replay_delivery", job_id, {"delivery": delivery_id})
        session.expire_all()
        selected = statement.where(Delivery.id == delivery_id)
        return delivery_page(session, selected, after=None, limit=1, order="desc").data[0]


@router.post("/jobs/{job_id}/cancel")
def cancel_job(call: Call, job_id: str) -> JobObject:
    """Stop a job; finished lines stay. Cancelling twice is not an error."""
    with call.db.write() as session:
        job = call.cancel(session, get_job(session, call, job_id), "job.cancel", _refusal)
        return _show_whole_job(session, call, job)


def _refusal(job: Job) -> str:
    return f"Cannot cancel a job in state '{job.state}'."


@router.post("/jobs/{job_id}/retry", response_model=JobObject)
def retry_job(call: Call, once: Idempotent, job_id: str, body: RetryJob | None = None) -> Response:
    """Run lines of an ended job again as a new job; by default those that failed or are missing."""
    options = body or RetryJob()

    def make(session: Session) -> JobObject:
        request = Retry(
            job=get_job(session, call, job_id),
            which=options.which,
            overrides=options.overrides,
            window=options.completion_window,
            priority=options.priority,
            key=once.key,
            request_id=call.request_id,
            actor=call.actor,
            config=call.config,
        )
        return _show_whole_job(session, call, submit_retry(session, call, request))

    count_if_due(call)
    return once.run(options.fields(), make)


def jobs_of(call: CallContext) -> Select[Job]:
    return select(Job).where(Job.project_id == call.project_id)


def _deliveries(call: CallContext, job: Job) -> Select[Delivery]:
    return select(Delivery).where(
        Delivery.project_id == call.project_id, Delivery.job_id == job.id, Delivery.endpoint_id.is_(None)
    )


def get_job(session: Session, call: CallContext, job_id: str) -> Job:
    job = session.scalar(jobs_of(call).where(Job.id == job_id))
    if job is None:
        raise NotFound(f"No job found with id '{clip(job_id)}'.", param="job_id")
    return job


def _show_whole_job(session: Session, call: CallContext, job: Job) -> JobObject:
    sums = totals(session, [job])[job.id]
    position, worked = queue_position(session, job), worked_seconds(session, job)
    after, counts = dependencies.predecessors(session, [job])[job.id], outcomes(session, job)
    model = model_statuses(session, call, [job]).get(job.id)
    name, speed = names_of(session, call, [job]).get(job.id), pace(session, job)
    return show_job(job, sums, after, model, speed, position, counts, name=name, worked=worked, whole=True)


def model_statuses(session: Session, call: CallContext, jobs: Sequence[Job]) -> dict[str, ModelStatus]:
    """Return the statuses of the models that do not answer yet, by the ids of the jobs that need them."""
    waiting = [job for job in jobs if job.state in LIVE and job.model and job.waiting_for in (None, "model")]
    if not waiting:
        return {}
    present, registry = workers.present(session), call.services.registry()
    statuses = {}
    for job in waiting:
        needed = str(job.serves_as or job.model)
        name = registry.target(needed, ()) or needed
        known = registry.models.get(name)
        load = workers.loading(present, known.queue if known else job.queue or "", name)
        if load is not None:
            model = load.model or name
            statuses[job.id] = ModelStatus(status="loading", model=model, phase=load.phase, since=int(load.since))
        elif job.waiting_for == "model":
            statuses[job.id] = ModelStatus(status="no_worker", model=name)
    return statuses
