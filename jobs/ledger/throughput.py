"""Lines and tokens that a project's jobs have answered, in buckets of equal length: from the times of segments."""

from dataclasses import dataclass

from sqlalchemy import Integer, cast, func, select
from sqlalchemy.orm import Session

from jobs.db.base import matching
from jobs.ledger.tables import Job, Segment


@dataclass(frozen=True, slots=True)
class ThroughputWindow:
    """A window of time: so many buckets of `step` seconds from `start` on, in unix seconds."""

    start: int
    step: int
    buckets: int

    @property
    def end(self) -> int:
        return self.start + self.step * self.buckets


@dataclass(frozen=True, slots=True)
class TimeBucket:
    """The sums of one bucket. `lines` counts those that failed too."""

    lines: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


def throughput(
    session: Session, project_id: str, window: ThroughputWindow, *, sqlite: bool, model: str | None = None
) -> list[TimeBucket]:
    """Return the sums of each bucket, empty ones included, in one query whose result is bounded by their number.

    With `model` only jobs that ask for this model count. The segments are found by their time, because those of a
    project go back years.
    """
    offset = (Segment.created_at - window.start) / window.step
    number = cast(offset if sqlite else func.floor(offset), Integer)  # a cast rounds on PostgreSQL
    tokens = (Segment.input_tokens, Segment.output_tokens)
    sums = (func.sum(column) for column in (Segment.done, Segment.failed, *tokens))
    of_jobs = {"project_id": project_id} if model is None else {"project_id": project_id, "model": model}
    statement = (
        select(number, *sums)
        .join(Job, Job.id == Segment.job_id)
        .where(Segment.created_at >= window.start, Segment.created_at < window.end)
        .where(*matching(Job, of_jobs, indexed=()))
        .group_by(number)
    )
    sums_by_bucket = {int(row[0]): TimeBucket(*map(int, row[1:])) for row in session.execute(statement)}
    return [sums_by_bucket.get(index, TimeBucket()) for index in range(window.buckets)]
