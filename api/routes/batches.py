"""Batches: a job of kind generation or embedding, as OpenAI's API has it.

The input's content is judged after the answer: `validating`, then `failed` with errors by line, or `in_progress`.
"""

from typing import Any, Literal

from fastapi.responses import Response
from pydantic import Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from api.bodies import Body
from api.deps import Call, CallContext
from api.fields import ExpiresAfter, Metadata
from api.file_rows import visible
from api.hooks import JobWebhook, check_webhook
from api.idempotency import Idempotent
from api.paging import After, Limit20, Page, find, page
from api.presenters.batch import STATUS, Batch, BatchWebhook, CreatedBatch, show_batch
from api.progress import Totals, totals
from api.routing import resource
from api.validation import clip
from api.windows import PATTERN, seconds
from jobs import ledger
from jobs.clock import now
from jobs.errors import Conflict, InvalidRequest, NotFound
from jobs.ids import new_id
from jobs.models import File, Job
from jobs.payloads import ENDPOINTS
from jobs.payloads import Batch as BatchPayload

router = resource("Batches")

Endpoint = Literal["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"]
_KINDS = frozenset(ENDPOINTS.values())


class CreateBatch(Body):
    """OpenAI's fields, and ours (through the SDK's `extra_body`): priority, dedupe, webhook."""

    input_file_id: str = Field(min_length=1, max_length=64)
    endpoint: Endpoint
    completion_window: str = Field(
        max_length=16, description="`24h`, or `90m`, `6h`, `7d` …", json_schema_extra={"pattern": PATTERN}
    )
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first within the project.")
    dedupe: bool = Field(default=False, description="Identical requests may be computed once.")
    webhook: JobWebhook | None = None


@router.post("/batches", response_model=CreatedBatch)
def create_batch(call: Call, once: Idempotent, body: CreateBatch) -> Response:
    """Queue a batch."""
    fields = body.fields()
    replayed = once.replay(fields)
    if replayed is not None:
        return replayed
    window = seconds(body.completion_window, call.config)
    hook = check_webhook(call.config, body.webhook)

    def make(session: Session) -> CreatedBatch:
        job = _job(call, body, window, once.key)
        job.input_path = _input_path(session, call, body.input_file_id)
        if hook is not None:
            job.webhook_url, job.webhook_secret = hook.url, hook.secret
        ledger.submit(session, job, actor=call.actor)
        shown = show_batch(job, Totals())
        webhook = BatchWebhook(url=hook.url, signing_secret=hook.secret if hook.made else None) if hook else None
        return CreatedBatch(**shown.model_dump(), webhook=webhook)

    return once.run(fields, make)


@router.get("/batches")
def list_batches(call: Call, after: After = None, limit: Limit20 = 20) -> Page[Batch]:
    """The project's batches, the newest first."""
    with call.db.read() as session:
        rows, more = find(session, batches_of(call), Job, after=after, limit=limit)
        sums = totals(session, rows)
    return page(rows, more, lambda job: show_batch(job, sums[job.id]))


@router.get("/batches/{batch_id}")
def retrieve_batch(call: Call, batch_id: str) -> Batch:
    """One batch, with its counts and usage so far."""
    with call.db.read() as session:
        job = get_batch(session, call, batch_id)
        return show_batch(job, totals(session, [job])[job.id])


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(call: Call, batch_id: str) -> Batch:
    """Stop a batch; what is finished stays. Cancelling twice is no error."""
    with call.db.write() as session:
        job = get_batch(session, call, batch_id)
        before = job.state
        try:
            job = ledger.cancel(session, job.id, actor=call.actor)
        except Conflict as error:
            message = f"Cannot cancel a batch with status '{STATUS[job.state]}'."
            raise Conflict(message, code="invalid_state") from error
        if job.state != before:
            call.record(session, "batch.cancel", job.id)
        return show_batch(job, totals(session, [job])[job.id])


def batches_of(call: CallContext) -> Select[Job]:
    return select(Job).where(Job.project_id == call.project_id, Job.kind.in_(_KINDS))


def get_batch(session: Session, call: CallContext, batch_id: str) -> Job:
    job = session.scalar(batches_of(call).where(Job.id == batch_id))
    if job is None:
        raise NotFound(f"No batch found with id '{clip(batch_id)}'.", param="batch_id")
    return job


def _job(call: CallContext, body: CreateBatch, window: int, key: str | None) -> Job:
    kind = ENDPOINTS[body.endpoint]
    payload = BatchPayload(
        dedupe=body.dedupe,
        output_expires_seconds=body.output_expires_after.seconds if body.output_expires_after else None,
    )
    created_at = now()
    labels: dict[str, Any] = {"labels": body.metadata} if body.metadata is not None else {}
    return Job(
        id=new_id("batch_"),
        project_id=call.project_id,
        kind=kind,
        endpoint=body.endpoint,
        payload=payload.model_dump(mode="json"),
        input_file_id=body.input_file_id,
        priority=body.priority,
        window=body.completion_window,
        created_at=created_at,
        deadline=created_at + window,
        idempotency_key=key,
        request_id=call.request_id,
        **labels,
    )


def _input_path(session: Session, call: CallContext, file_id: str) -> str | None:
    """Where the input lies. An unknown file fails the batch later, as at OpenAI; one for another purpose does now.

    The row is locked, so that a file deleted at this moment keeps its bytes for this job.
    """
    file = session.scalar(visible(call).where(File.id == file_id).with_for_update(read=True))
    if file is None:
        return None
    if file.purpose != "batch":
        message = f"File '{file_id}' has the purpose '{file.purpose}'; a batch reads files of purpose 'batch'."
        raise InvalidRequest(message, param="input_file_id", code="invalid_file_purpose")
    return file.path
