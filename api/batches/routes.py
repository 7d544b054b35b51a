"""Batches: a job of kind generation or embedding, as OpenAI's API has it.

The input's content is checked after the answer: `validating`, then `failed` with errors by line, or `in_progress`.
"""

from typing import Literal

from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.batches.schemas import PATTERN, STATUS, Batch, CreatedBatch, show_batch
from api.deps import Call, CallContext
from api.errors import clip
from api.http.bodies import Body, resource
from api.http.fields import AfterJobs, ExpiresAfter, Metadata
from api.http.idempotency import Idempotent
from api.http.paging import After, Limit20, Page, find, page
from api.http.space import check_not_full, count_if_due
from api.webhooks.queries import Hook, JobWebhook, check_webhook, show_webhook
from jobs.batches import batches
from jobs.batches.batches import BatchRequest, job_of
from jobs.clock import now
from jobs.datasets.references import MAX_LENGTH
from jobs.errors import InvalidRequest, NotFound
from jobs.ledger import ledger
from jobs.ledger.dependencies import predecessors
from jobs.ledger.progress import Totals, totals
from jobs.ledger.tables import Job

router = resource("Batches", area="batch")

Endpoint = Literal["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/rerank"]


class BatchFields(Body):
    """OpenAI's fields, and Nightmill's (through the SDK's `extra_body`): priority, dedupe, webhook."""

    input_file_id: str = Field(
        min_length=1, max_length=MAX_LENGTH, description="A file, or `dataset:NAME@VERSION/SPLIT`."
    )
    endpoint: Endpoint
    completion_window: str = Field(
        max_length=16, description="`24h`, or `90m`, `6h`, `7d` …", json_schema_extra={"pattern": PATTERN}
    )
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first within the project.")
    dedupe: bool = Field(default=False, description="Identical requests may be computed once.")
    webhook: JobWebhook | None = None


class CreateBatch(BatchFields):
    """A batch. With `not_before` it is checked at once and begins at that time, from which its window counts.

    With `after` it is checked and begins when these jobs have completed; its window counts from its creation.
    """

    not_before: int | None = Field(default=None, ge=0, lt=1 << 40, description="Unix seconds.")
    after: AfterJobs | None = None


@router.post("/batches", response_model=CreatedBatch)
def create_batch(call: Call, once: Idempotent, body: CreateBatch) -> Response:
    """Queue a batch."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    hook = check_webhook(call, body.webhook)
    batch_request = build_request(call, body, hook)
    _check_start(call, body.not_before)

    def make(session: Session) -> CreatedBatch:
        check_not_full(session, call)
        columns = {"idempotency_key": once.key, "request_id": call.request_id}
        pinned = batches.pin_input(session, call.project_id, batch_request)
        job = job_of(pinned, call.project_id, not_before=body.not_before, **columns)
        file = batches.input_file(session, call.project_id, pinned.input_file_id)
        job.input_path = file.path if file else None
        ledger.submit(session, job, actor=call.actor, after=body.after or ())
        shown = show_batch(job, Totals(), sorted(set(body.after or ())))
        return CreatedBatch(**shown.model_dump(), webhook=show_webhook(hook))

    count_if_due(call)
    return once.run(fields, make)


@router.get("/batches")
def list_batches(call: Call, after: After = None, limit: Limit20 = 20) -> Page[Batch]:
    """List the project's batches, the newest first."""
    with call.db.read() as session:
        rows, more = find(session, batches_of(call), Job, after=after, limit=limit)
        sums, after_ids = totals(session, rows), predecessors(session, rows)
    return page(rows, more, lambda job: show_batch(job, sums[job.id], after_ids[job.id]))


@router.get("/batches/{batch_id}")
def retrieve_batch(call: Call, batch_id: str) -> Batch:
    """Return one batch, with its counts and usage so far."""
    with call.db.read() as session:
        return _show_batch(session, get_batch(session, call, batch_id))


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(call: Call, batch_id: str) -> Batch:
    """Stop a batch; finished lines keep their results. Cancelling twice is not an error."""
    with call.db.write() as session:
        job = call.cancel(session, get_batch(session, call, batch_id), "batch.cancel", _refusal)
        return _show_batch(session, job)


def _refusal(job: Job) -> str:
    return f"Cannot cancel a batch with status '{STATUS[job.state]}'."


def _show_batch(session: Session, job: Job) -> Batch:
    return show_batch(job, totals(session, [job])[job.id], predecessors(session, [job])[job.id])


def batches_of(call: CallContext) -> Select[Job]:
    return select(Job).where(Job.project_id == call.project_id, Job.kind.in_(batches.NAMES))


def get_batch(session: Session, call: CallContext, batch_id: str) -> Job:
    job = session.scalar(batches_of(call).where(Job.id == batch_id))
    if job is None:
        raise NotFound(f"No batch found with id '{clip(batch_id)}'.", param="batch_id")
    return job


def build_request(call: CallContext, body: BatchFields, hook: Hook | None) -> BatchRequest:
    """Check a request for a batch. Raises InvalidRequest."""
    return BatchRequest(
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        window_seconds=batches.window_seconds(body.completion_window, call.config),
        priority=body.priority,
        dedupe=body.dedupe,
        output_expires_seconds=body.output_expires_after.seconds if body.output_expires_after else None,
        metadata=body.metadata,
        webhook_url=hook.url if hook else None,
        webhook_secret=hook.secret if hook else None,
    )


def _check_start(call: CallContext, not_before: int | None) -> None:
    latest = now() + call.config.window_max_seconds
    if not_before is not None and not_before > latest:
        message = f"A batch begins within {call.config.window_max_seconds} seconds."
        raise InvalidRequest(message, param="not_before", code="invalid_value")
