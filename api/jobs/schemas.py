"""A job of any kind, with what OpenAI's objects leave out: progress, pace, position in the queue."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from api.batches.schemas import STATUS, BatchErrors, Usage, show_errors, show_usage
from api.http.fields import unix_seconds, wait_name
from jobs.ledger import kinds
from jobs.ledger.progress import Pace, Totals
from jobs.ledger.tables import Job
from jobs.webhooks.sending import envelope
from jobs.webhooks.tables import Event

#: The states of the ledger, and OpenAI's words for them.
StateOrStatus = Literal[
    "queued", "running", "finishing", "expiring", "cancelling", "succeeded", "failed", "expired", "cancelled",
    "validating", "in_progress", "finalizing", "completed",
]  # fmt: skip


class Progress(BaseModel):
    """Items so far. `fraction` is relative to the total, 0 while that is unknown."""

    total: int
    completed: int
    failed: int
    running: int
    fraction: float


class Rate(BaseModel):
    """Averages over the last 30 seconds."""

    items_per_second: float
    tokens_per_second: float


class Outcomes(BaseModel):
    """The results of the lines. A line with several choices counts under each of their finish reasons.

    `empty`: answers with neither text nor a tool call. `errors`: by code.
    """

    finish_reasons: dict[str, int]
    empty: int
    errors: dict[str, int]


class ModelStatus(BaseModel):
    """The reason that the model of a running job does not answer yet.

    The model has been `loading` since a time, or has `no_worker`.
    """

    status: Literal["loading", "no_worker"]
    model: str
    phase: str | None = None
    since: int | None = None


class Webhook(BaseModel):
    url: str


class JobObject(BaseModel):
    """A job of any kind.

    `rate`, `eta_seconds`, `worked_seconds` and `queue_position` are null in lists and where they have no meaning,
    `outcomes` and `overrides` in lists. `worked_seconds` counts from the start of the first answered lines, pauses
    included. `name` is the entry `name` of the metadata, else the suffix of a fine-tuning job, the name of an eval run,
    of a vector store or of the input file.
    """

    id: str
    object: Literal["job"] = "job"
    name: str | None
    kind: str
    state: str
    status: str
    endpoint: str | None
    model: str | None
    after: list[str]
    waiting_for: str | None
    model_status: ModelStatus | None
    progress: Progress
    rate: Rate | None
    eta_seconds: float | None
    worked_seconds: float | None
    queue_position: int | None
    usage: Usage
    outcomes: Outcomes | None
    errors: BatchErrors | None
    vector_store_id: str | None
    vector_store_index_id: str | None
    eval_id: str | None
    dataset_id: str | None
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    priority: int
    completion_window: str | None
    deadline: int | None
    not_before: int | None
    retry_of: str | None
    schedule_id: str | None
    overrides: dict[str, Any] | None
    webhook: Webhook | None
    metadata: dict[str, str] | None
    idempotency_key: str | None
    request_id: str | None
    created_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expiring_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None


class GraphJob(BaseModel):
    """A job of a graph. `after` holds the predecessors that the graph shows."""

    id: str
    kind: str
    state: str
    waiting_for: str | None
    after: list[str]


class JobGraph(BaseModel):
    """A job with its predecessors and dependents, direct and indirect. `truncated`: not all are shown."""

    object: Literal["job.graph"] = "job.graph"
    job_id: str
    jobs: list[GraphJob]
    truncated: bool


class ShardPart(BaseModel):
    """Neighbouring shards of a job, summed. `running` and `ended` count shards, the others lines."""

    first_line: int
    lines: int
    done: int
    failed: int
    shards: int
    running: int
    ended: int


class JobShards(BaseModel):
    """The shards of a job in the order of its input, in parts."""

    object: Literal["job.shards"] = "job.shards"
    job_id: str
    shards: int
    data: list[ShardPart]


class JobEvent(BaseModel):
    """An event of a job. `seq` counts from 1 without gaps."""

    id: str
    object: Literal["job.event"] = "job.event"
    job_id: str
    seq: int
    type: str
    created_at: int
    data: dict[str, Any]


class ProjectEvent(BaseModel):
    """An event of a project: the body of a webhook, and the position of the event.

    `position` counts the events of the project, `seq` those of `subject_id` (a job or a webhook endpoint); both count
    from 1 without gaps.
    """

    id: str
    object: Literal["event"] = "event"
    created_at: int
    type: str
    data: dict[str, Any]
    position: int
    subject_id: str
    seq: int


def show_job(
    job: Job,
    totals: Totals,
    after: Sequence[str],
    model: ModelStatus | None = None,
    pace: Pace | None = None,
    position: int | None = None,
    outcomes: Mapping[str, int] | None = None,
    *,
    name: str | None,
    worked: float | None = None,
    whole: bool = False,
) -> JobObject:
    return JobObject(
        id=job.id,
        name=name,
        kind=job.kind,
        state=job.state,
        status=STATUS[job.state],
        endpoint=job.endpoint or None,
        model=job.model,
        after=list(after),
        waiting_for=wait_name(job),
        model_status=model,
        progress=_progress(job, totals),
        rate=Rate(items_per_second=round(pace.items_per_second, 3), tokens_per_second=round(pace.tokens_per_second, 3))
        if pace
        else None,
        eta_seconds=_eta(job, totals, pace),
        worked_seconds=None if worked is None else round(worked, 3),
        queue_position=position,
        usage=show_usage(totals),
        outcomes=None if outcomes is None else _outcomes(outcomes),
        errors=show_errors(job.errors),
        input_file_id=job.input_file_id,
        output_file_id=job.output_file_id,
        error_file_id=job.error_file_id,
        priority=job.priority,
        completion_window=job.window or None,
        deadline=unix_seconds(job.deadline),
        not_before=unix_seconds(job.not_before),
        retry_of=job.retry_of,
        schedule_id=job.schedule_id,
        overrides=job.payload.get("overrides") or {} if whole else None,
        webhook=Webhook(url=job.webhook_url) if job.webhook_url else None,
        metadata=job.metadata_,
        idempotency_key=job.idempotency_key,
        request_id=job.request_id,
        **kinds.links(job),
        **_times(job),
    )


def show_graph(job_id: str, jobs: Sequence[Job], edges: Sequence[tuple[str, str]], *, truncated: bool) -> JobGraph:
    after: dict[str, list[str]] = {job.id: [] for job in jobs}
    for edge in edges:
        after[edge[0]].append(edge[1])
    shown = [
        GraphJob(id=job.id, kind=job.kind, state=job.state, waiting_for=wait_name(job), after=after[job.id])
        for job in jobs
    ]
    return JobGraph(job_id=job_id, jobs=shown, truncated=truncated)


def show_event(event: Event) -> JobEvent:
    return JobEvent(
        id=event.id,
        job_id=event.subject_id,
        seq=event.seq,
        type=event.type,
        created_at=int(event.created_at),
        data=event.data,
    )


def show_project_event(event: Event) -> ProjectEvent:
    position = {"position": event.position, "subject_id": event.subject_id, "seq": event.seq}
    return ProjectEvent.model_validate(envelope(event) | position)


def _outcomes(counts: Mapping[str, int]) -> Outcomes:
    errors = {name.removeprefix("error:"): count for name, count in counts.items() if name.startswith("error:")}
    reasons = {name: count for name, count in counts.items() if name != "empty" and not name.startswith("error:")}
    return Outcomes(finish_reasons=reasons, empty=counts.get("empty", 0), errors=errors)


def _progress(job: Job, totals: Totals) -> Progress:
    done = totals.completed + totals.failed
    fraction = round(done / job.total, 6) if job.total else 0.0
    counts = {"completed": totals.completed, "failed": totals.failed, "running": totals.running}
    return Progress(total=job.total, **counts, fraction=fraction)


def _eta(job: Job, totals: Totals, pace: Pace | None) -> float | None:
    if pace is None or pace.items_per_second <= 0:
        return None
    return round((job.total - totals.completed - totals.failed) / pace.items_per_second, 1)


def _times(job: Job) -> dict[str, Any]:
    names = ("in_progress", "finalizing", "completed", "failed", "expiring", "expired", "cancelling", "cancelled")
    times: dict[str, Any] = {f"{name}_at": unix_seconds(getattr(job, f"{name}_at")) for name in names}
    return times | {"created_at": int(job.created_at)}
