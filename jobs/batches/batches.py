"""Batches: their kinds, the job that a request becomes, the quota, and the lines of a retry."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from jobs.batches.lines import Bad
from jobs.clock import now
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger import kinds
from jobs.ledger.kinds import Kind, Payload
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.queues import Queue
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES

PREFIX: Final = "batch_"
OUTPUT: Final = "batch_output"  # the purpose of files that batches write; their names begin with the batch's id

#: The endpoints of batches, with the kind of job of each.
ENDPOINTS: Final[dict[str, str]] = {
    RESPONSES: "generation",
    CHAT: "generation",
    COMPLETIONS: "generation",
    EMBEDDINGS: "embedding",
    RERANK: "reranking",
}

#: OpenAI's names of the terminal states of a batch; these events go to webhooks.
EVENTS: Final[dict[str, str]] = {
    "succeeded": "batch.completed",
    "failed": "batch.failed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
}


#: The lines of an ended job that a retry runs: those that failed or are missing, those cut off at the token limit, all.
Which = Literal["failed", "length", "all"]
FAILED: Final = "failed"
LENGTH: Final = "length"
ALL: Final = "all"


class Batch(Payload):
    """Answer every line of the input, or `which` lines of the job that this one retries.

    `overrides` are laid over each line's body. `dedupe` lets identical requests be computed once.
    `output_expires_seconds` counts from the creation of the output file.
    """

    output_expires_seconds: int | None = None
    dedupe: bool = False
    overrides: dict[str, Any] = Field(default_factory=dict)
    which: Which = FAILED

    def stored(self) -> dict[str, Any]:
        """Return the payload without defaults, so that a worker of an earlier version can read it."""
        return self.model_dump(mode="json", exclude_defaults=True)


def _kind(name: str, label: str, queue: Queue) -> Kind:
    return Kind(name, label, PREFIX, Batch, EVENTS, resources=("batches", "throughput", "files"), run_queue=queue)


KINDS: Final = (
    _kind("generation", "Batch", Queue.GENERATE),
    _kind("embedding", "Batch of embeddings", Queue.EMBED),
    _kind("reranking", "Batch of rankings", Queue.EMBED),
)
NAMES: Final = frozenset(kind.name for kind in KINDS)


class BatchRequest(BaseModel):
    """A checked request for a batch.

    `window_seconds` is the length of the completion window; times are unix seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    input_file_id: str
    completion_window: str
    window_seconds: int
    priority: int = 0
    dedupe: bool = False
    output_expires_seconds: int | None = None
    metadata: dict[str, str] | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = None


def job_of(request: BatchRequest, project_id: str, *, not_before: float | None = None, **columns: Any) -> Job:
    """Make a job, not submitted yet and without an input path. Its window begins when the job may begin."""
    payload = Batch(dedupe=request.dedupe, output_expires_seconds=request.output_expires_seconds)
    created_at = now()
    metadata: dict[str, Any] = (
        {"metadata_": request.metadata} if request.metadata is not None else {}
    )  # JSON null is not NULL
    return Job(
        id=new_id(PREFIX),
        project_id=project_id,
        kind=ENDPOINTS[request.endpoint],
        endpoint=request.endpoint,
        payload=payload.stored(),
        input_file_id=request.input_file_id,
        priority=request.priority,
        window=request.completion_window,
        created_at=created_at,
        not_before=not_before,
        deadline=max(created_at, not_before or 0.0) + request.window_seconds,
        webhook_url=request.webhook_url,
        webhook_secret=request.webhook_secret,
        **metadata,
        **columns,
    )


# ── quota ──

#: The tokens that a project has waiting are estimated from bytes, without a tokenizer.
BYTES_PER_TOKEN: Final = 4


def queued_bytes(session: Session, project_id: str, excluded: str | None = None) -> int:
    """Return the bytes of input that the project's live jobs still read, of all jobs or all but `excluded`."""
    total = session.scalar(
        select(func.sum(File.bytes))
        .join(Job, Job.input_file_id == File.id)
        .where(Job.project_id == project_id, Job.state.in_(LIVE), Job.in_progress_at.is_not(None))
        .where(Job.id != (excluded or ""), Job.kind.in_(kinds.names(lambda kind: kind.counted)))
    )
    return int(total or 0)


def is_over_quota(queued: int, more: int, limit: int) -> bool:
    """Return whether `more` bytes of input are too many for a project; a limit of 0 is none."""
    return bool(limit) and (queued + more) // BYTES_PER_TOKEN > limit


def quota_refusal(limit: int) -> Bad:
    return Bad("token_limit_exceeded", f"The project would have more than {limit} tokens queued.")


# ── retries ──

RESULTS_EXPIRED: Final = "results_expired"


def last_run(session: Session, job: Job, which: Which) -> tuple[Job | None, Which]:
    """Return the job whose lines a retry of `job` selects from, and which lines of that job the retry runs.

    A job that never ran has no results. Its retry does what the job itself was to do. Where that was to retry another
    job, and retention has removed that, the job itself is returned, and no results are known.
    No job is returned where no line was ever run.
    """
    while job.in_progress_at is None:
        which = Batch.model_validate(job.payload).which
        if job.retry_of is None:
            return None, which
        before = session.get(Job, job.retry_of)
        if before is None:
            return job, which
        job = before
    return job, which


def runs_all(job: Job, which: Which) -> bool:
    """Return whether a retry runs every line that `job` read: a failed job has no results."""
    return which == ALL or (which == FAILED and job.state == JobState.FAILED)


def results_known(session: Session, job: Job, which: Which) -> bool:
    """Return whether it is known which lines of `job`, the `last_run`, a retry runs. Call this after reading them.

    Retention deletes the first shard of a job before all else of it: without that shard, the rest is incomplete.
    Segments of earlier versions do not say which answers were cut off.
    """
    if job.in_progress_at is None:
        return False  # what it was to retry is gone
    if runs_all(job, which) and job.retry_of is None:
        return True  # the input file has all lines
    if not session.scalar(select(exists().where(Shard.job_id == job.id, Shard.n == 0))):
        return False
    unknown = exists().where(Segment.job_id == job.id, Segment.cut_off.is_(None))
    return which != LENGTH or not session.scalar(select(unknown))


def results_expired(job: Job) -> str:
    return f"What became of the lines of job '{job.id}' is not known any more. Submit its input as a new batch."
