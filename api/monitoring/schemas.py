"""The bodies of requests about monitors of drift, and the objects that clients see."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.http.bodies import Body
from api.http.fields import Metadata, MetadataField, unix_seconds
from jobs.ledger.states import LIVE, JobState
from jobs.ledger.tables import Job
from jobs.monitoring.monitors import MAX_TEXTS, MIN_TEXTS
from jobs.monitoring.tables import DriftCheck, DriftMonitor

_MONTH = 30 * 86_400
_Time = Annotated[int, Field(ge=0, lt=1 << 40)]
_Name = Annotated[str, Field(min_length=1, max_length=255)]

# ── requests ──


class StoredAnswersSource(Body):
    """Stored answers of the project that match each given field."""

    type: Literal["stored_completions", "responses"]
    model: _Name | None = Field(default=None, description="As it was asked for, or as the answer names it.")
    metadata: MetadataField


class StoredAnswersOfTime(StoredAnswersSource):
    """Stored answers of a time; without one those of the last `window_seconds`."""

    created_after: _Time | None = Field(default=None, description="Inclusive.")
    created_before: _Time | None = Field(default=None, description="Exclusive.")


class ShadowAnswersSource(Body):
    """What the shadow of an alias answers, beside what the clients got; its `compare` is `grader`."""

    type: Literal["shadow"]
    alias: _Name


class TextFileSource(Body):
    """A file of JSON lines, each with the text `input`, and `retrieval_score` and `output_score` if it has any."""

    type: Literal["file"]
    file_id: str = Field(min_length=1, max_length=64)


OwnSource = Annotated[StoredAnswersSource | TextFileSource, Field(discriminator="type")]
SampledSource = Annotated[StoredAnswersOfTime | TextFileSource, Field(discriminator="type")]


class CreateDriftMonitor(Body):
    """A monitor. Without a `baseline` the texts that `source` has now are the baseline."""

    name: _Name
    source: OwnSource
    baseline: SampledSource | None = None
    window_seconds: int = Field(default=86_400, ge=3600, le=_MONTH)
    sample: int = Field(default=1000, ge=MIN_TEXTS, le=MAX_TEXTS, description="Texts that are compared, at most.")
    embedding_model: _Name | None = Field(default=None, description="The deployment's by default.")
    metadata: MetadataField


class CreateBaseline(Body):
    """Another baseline, of the texts that the monitor's own source has now by default."""

    source: SampledSource | None = None


class CreateDriftCheck(Body):
    """A check of the texts that the monitor's own source has now, or another source."""

    source: SampledSource | None = None


# ── objects ──

DriftStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class DriftError(BaseModel):
    code: str
    message: str
    line: int | None
    param: str | None


class DriftBaseline(BaseModel):
    """The baseline of a monitor. `id` is that of its job."""

    id: str
    status: DriftStatus
    error: DriftError | None


class DriftMonitorObject(BaseModel):
    id: str
    object: Literal["drift_monitor"] = "drift_monitor"
    name: str
    source: dict[str, Any]
    baseline: DriftBaseline
    window_seconds: int
    sample: int
    embedding_model: str
    metadata: Metadata | None
    created_at: int


class DriftMonitorDeleted(BaseModel):
    id: str
    object: Literal["drift_monitor.deleted"] = "drift_monitor.deleted"
    deleted: bool = True


class DriftFeature(BaseModel):
    """The distance of a feature from the baseline. It is drift if `value` is above `limit`."""

    name: Literal["embedding", "length", "language", "retrieval_score", "output_score"]
    measure: Literal["energy_distance", "psi"]
    value: float
    limit: float
    is_drift: bool
    baseline_texts: int
    current_texts: int


class DriftCheckObject(BaseModel):
    """A check. `features` and `is_drift` are null until it completes, a feature that too few texts have is left out."""

    id: str
    object: Literal["drift_check"] = "drift_check"
    monitor_id: str
    status: DriftStatus
    is_drift: bool | None
    features: list[DriftFeature] | None
    error: DriftError | None
    created_at: int
    ended_at: int | None


_STATUS: Mapping[str, DriftStatus] = {
    **dict.fromkeys(LIVE, "in_progress"),
    JobState.QUEUED: "queued",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "failed",
    JobState.CANCELLED: "cancelled",
}


def show_monitor(monitor: DriftMonitor, baseline: Job) -> DriftMonitorObject:
    return DriftMonitorObject(
        id=monitor.id,
        name=monitor.name,
        source=monitor.source,
        baseline=DriftBaseline(id=baseline.id, status=_STATUS[baseline.state], error=_error_of(baseline)),
        window_seconds=monitor.window_seconds,
        sample=monitor.sample,
        embedding_model=monitor.embedding_model,
        metadata=monitor.metadata_,
        created_at=int(monitor.created_at),
    )


def show_check(check: DriftCheck, job: Job) -> DriftCheckObject:
    return DriftCheckObject(
        id=check.id,
        monitor_id=check.monitor_id,
        status=_STATUS[job.state],
        is_drift=check.is_drift,
        features=None if check.features is None else [DriftFeature.model_validate(row) for row in check.features],
        error=_error_of(job),
        created_at=int(check.created_at),
        ended_at=unix_seconds(job.completed_at or job.failed_at or job.expired_at or job.cancelled_at),
    )


def _error_of(job: Job) -> DriftError | None:
    return DriftError.model_validate({"line": None, "param": None, **job.errors[0]}) if job.errors else None
