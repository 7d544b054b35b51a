"""Batches: their kinds, the job that a request becomes, the quota, and the lines of a retry."""

import re
from typing import Any, Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, exists, func, select, true
from sqlalchemy.orm import Session

from jobs.batches.lines import REQUIRED
from jobs.clock import now
from jobs.datasets import references
from jobs.datasets.dataset_versions import PURPOSE
from jobs.errors import InvalidRequest
from jobs.files import lookup
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger import kinds, ledger
from jobs.ledger.kinds import Kind, Payload, Retry
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.queues import Queue
from jobs.requests.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES
from jobs.settings import Settings

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

Which = kinds.Which
FAILED: Final = "failed"
LENGTH: Final = "length"
ALL: Final = "all"


class BatchPayload(Payload):
    """Answer every line of the input, or `which` lines of the job that this one retries.

    `overrides` are laid over each line's body. `dedupe` lets identical requests be computed once.
    `output_expires_seconds` counts from the creation of the output file. `prompts` has the versions of the prompts that
    lines name, as planning has found them (see `jobs.prompts.resolution.PinnedPrompts`). `dataset` is the reference by
    which the input was named (see `jobs.datasets.references`).
    """

    output_expires_seconds: int | None = None
    dedupe: bool = False
    overrides: dict[str, Any] = Field(default_factory=dict)
    which: Which = FAILED
    prompts: dict[str, str] = Field(default_factory=dict)
    dataset: str | None = None

    def to_payload(self) -> dict[str, Any]:
        """Return the payload without defaults, so that a worker of an earlier version can read it."""
        return self.model_dump(mode="json", exclude_defaults=True)


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
    dataset: str | None = None


def job_of(request: BatchRequest, project_id: str, *, not_before: float | None = None, **columns: Any) -> Job:
    """Make a job, not submitted yet and without an input path. Its window begins when the job may begin."""
    payload = BatchPayload(
        dedupe=request.dedupe, output_expires_seconds=request.output_expires_seconds, dataset=request.dataset
    )
    created_at = now()
    metadata: dict[str, Any] = (
        {"metadata_": request.metadata} if request.metadata is not None else {}
    )  # JSON null is not NULL
    return Job(
        id=new_id(PREFIX),
        project_id=project_id,
        kind=ENDPOINTS[request.endpoint],
        endpoint=request.endpoint,
        payload=payload.to_payload(),
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


def input_file(session: Session, project_id: str, file_id: str, *, lock: bool = True) -> File | None:
    """Return the input file; None for an unknown file, which fails the batch later, as at OpenAI.

    Raises: InvalidRequest, for a file of another purpose.

    With `lock` the row is locked, so that a file that is deleted at this moment keeps its bytes for this job.
    """
    file = lookup.find(session, project_id, file_id, lock=lock)
    if file is not None:
        check_purpose(file)
    return file


def pin_input(session: Session, project_id: str, request: BatchRequest) -> BatchRequest:
    """Return a request with the file that it names, and the reference to a dataset by which it does, or once did.

    Raises: InvalidRequest.
    """
    ids, pins = references.pin(session, project_id, {"input_file_id": request.input_file_id})
    return request.model_copy(update={**ids, "dataset": pins.get("input_file_id", request.dataset)})


def check_purpose(file: File) -> None:
    """Raise InvalidRequest for a file that no batch reads."""
    if file.purpose not in ("batch", PURPOSE):
        message = f"File '{file.id}' has the purpose '{file.purpose}'; a batch reads files of purpose 'batch'."
        raise InvalidRequest(message, param="input_file_id", code="invalid_file_purpose")


#: The shortest completion window.
MIN_WINDOW_SECONDS: Final = 60
#: The seconds of the units of completion windows.
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,5})([smhd])")


def window_seconds(window: str, config: Settings) -> int:
    """Return the seconds of a completion window. Raises InvalidRequest."""
    match = _WINDOW.fullmatch(window)
    length = int(match[1]) * _UNITS[match[2]] if match else 0
    if not MIN_WINDOW_SECONDS <= length <= config.window_max_seconds:
        message = (
            f"Invalid value: '{window[:64]}'. Supported values are: '24h', and any whole number of minutes, hours or "
            f"days ('90m', '6h', '7d') of {MIN_WINDOW_SECONDS} to {config.window_max_seconds} seconds."
        )
        raise InvalidRequest(message, param="completion_window", code="invalid_value")
    return length


# ── quota ──


def queued_bytes(
    session: Session, project_id: str, excluded: str | None = None, which: ColumnElement[bool] | None = None
) -> int:
    """Return the bytes of input that the project's live jobs still read, of all jobs or all but `excluded`.

    `which` is the condition of the jobs that count.
    """
    total = session.scalar(
        select(func.sum(File.bytes))
        .join(Job, Job.input_file_id == File.id)
        .where(Job.project_id == project_id, Job.state.in_(LIVE), Job.in_progress_at.is_not(None))
        .where(Job.id != (excluded or ""), Job.kind.in_(kinds.names(lambda kind: kind.counted)))
        .where(true() if which is None else which)
    )
    return int(total or 0)


# ── retries ──

RESULTS_EXPIRED: Final = "results_expired"
#: Bytes of a job's overrides, those of the jobs that it retries included: they are read with each shard.
MAX_OVERRIDES_BYTES: Final = 65_536
_COPIED: Final = ("kind", "endpoint", "input_file_id", "webhook_url", "webhook_secret")


def last_run(session: Session, job: Job, which: Which) -> tuple[Job | None, Which]:
    """Return the job whose lines a retry of `job` selects from, and which lines of that job the retry runs.

    A job that never ran has no results. Its retry does what the job itself was to do. Where that was to retry another
    job, and retention has removed that, the job itself is returned, and no results are known.
    No job is returned where no line was ever run.
    """
    while job.in_progress_at is None:
        which = BatchPayload.model_validate(job.payload).which
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


def expiry_message(job: Job) -> str:
    return f"What became of the lines of job '{job.id}' is not known any more. Submit its input as a new batch."


def _retry(session: Session, request: Retry) -> Job:
    """Submit a batch over the same input, for the requested lines."""
    old = request.job
    _check_results(session, old, request.which)
    created_at, window = now(), request.window or old.window
    payload = BatchPayload.model_validate(old.payload)
    overrides = {**payload.overrides, **request.overrides}
    _check_overrides(overrides, old.endpoint)
    job = Job(
        id=new_id(PREFIX),
        project_id=old.project_id,
        input_path=request.lock_input(session).path,
        payload=payload.model_copy(update={"overrides": overrides, "which": request.which}).to_payload(),
        priority=old.priority if request.priority is None else request.priority,
        window=window,
        created_at=created_at,
        deadline=created_at + window_seconds(window, request.config),
        **request.columns,
        **{name: getattr(old, name) for name in _COPIED},
    )
    if old.metadata_ is not None:
        job.metadata_ = old.metadata_
    return ledger.submit(session, job, actor=request.actor)


def _check_results(session: Session, old: Job, which: Which) -> None:
    first, which = last_run(session, old, which)
    if first is not None and not results_known(session, first, which):
        raise InvalidRequest(expiry_message(first), code=RESULTS_EXPIRED)


def _check_overrides(overrides: dict[str, Any], endpoint: str) -> None:
    """Check the overrides as they would be checked in each line."""
    if len(msgspec.json.encode(overrides)) > MAX_OVERRIDES_BYTES:
        message = f"The overrides, with those of the jobs before, have more than {MAX_OVERRIDES_BYTES} bytes."
        raise InvalidRequest(message, param="overrides", code="overrides_too_large")
    model, stream = overrides.get("model", "its own"), overrides.get("stream")
    if not isinstance(model, str) or not model:
        raise _invalid("model", "Invalid type for 'overrides.model': expected a string.", "invalid_type")
    if not isinstance(stream, bool | None):
        raise _invalid("stream", "Invalid type for 'overrides.stream': expected a boolean.", "invalid_type")
    if stream:
        raise _invalid("stream", "Batches do not stream.", "streaming_unsupported")
    required, missing = REQUIRED[endpoint]
    if required in overrides and overrides[required] is None:
        raise _invalid(required, missing, "invalid_request")


def _invalid(name: str, message: str, code: str) -> InvalidRequest:
    return InvalidRequest(message, param=f"overrides.{name}", code=code)


# ── the kinds ──


def _kind(name: str, label: str, queue: Queue) -> Kind:
    return Kind(
        name,
        label,
        PREFIX,
        BatchPayload,
        EVENTS,
        resources=("batches", "throughput", "files"),
        run_queue=queue,
        is_batch=True,
        retry=_retry,
    )


KINDS: Final = (
    _kind("generation", "Batch", Queue.GENERATE),
    _kind("embedding", "Batch of embeddings", Queue.EMBED),
    _kind("reranking", "Batch of rankings", Queue.EMBED),
)
NAMES: Final = frozenset(kind.name for kind in KINDS)
