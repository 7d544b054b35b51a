"""A batch that was asked for, as the job it becomes: by the API at once, or by a schedule each time it is due."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs.clock import now
from jobs.ids import new_id
from jobs.ledger.payloads import ENDPOINTS, Batch
from jobs.ledger.tables import Job


class BatchRequest(BaseModel):
    """Checked already. `window_seconds` is the completion window's length; times are unix seconds."""

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


def job_of(wanted: BatchRequest, project_id: str, *, not_before: float | None = None, **facts: Any) -> Job:
    """A job that is not submitted yet and has no input path. Its window begins when it may begin."""
    payload = Batch(dedupe=wanted.dedupe, output_expires_seconds=wanted.output_expires_seconds)
    created_at = now()
    labels: dict[str, Any] = {"labels": wanted.metadata} if wanted.metadata is not None else {}  # JSON null is not NULL
    return Job(
        id=new_id("batch_"),
        project_id=project_id,
        kind=ENDPOINTS[wanted.endpoint],
        endpoint=wanted.endpoint,
        payload=payload.model_dump(mode="json"),
        input_file_id=wanted.input_file_id,
        priority=wanted.priority,
        window=wanted.completion_window,
        created_at=created_at,
        not_before=not_before,
        deadline=max(created_at, not_before or 0.0) + wanted.window_seconds,
        webhook_url=wanted.webhook_url,
        webhook_secret=wanted.webhook_secret,
        **labels,
        **facts,
    )
