"""Which bytes a job reads: its input file, or, for a retry, a copy of the lines that failed or are missing.

Of a job that ran and failed there are no results: all that it read is missing.
"""

from collections.abc import Iterator
from typing import BinaryIO

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.batches import lines, quota, retries
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment, Shard
from jobs.security.tables import Project
from workers.runtime.context import Context


def missing_file(job: Job) -> lines.Bad:
    message = f"Cannot find file {job.input_file_id}, or your project does not have access to it."
    return lines.Bad("invalid_request", message, None, "file_id")


def input_path(context: Context, claim: JobClaim) -> str | lines.Bad:
    """Where the job's input lies, or why it has none: its file may not be read, or nobody knows what it is to retry."""
    job = claim.job
    if job.input_path is None:
        return missing_file(job)
    if job.retry_of is None:
        return job.input_path
    with context.db.read() as session:
        first = retries.last_run(session, job.retry_of)
        if first is None:
            return job.input_path
        good = {} if first.state == JobState.FAILED else _good_lines(session, first.id)
        if not retries.known(session, first):
            return lines.Bad(retries.EXPIRED, retries.expired(first))
    path = f"jobs/{job.id}/input-{claim.epoch}.jsonl"
    source = first.input_path or job.input_path
    with context.storage.reader(source) as handle, context.storage.writer(path) as out:
        for raw in _left(handle, good, context.config.batch_max_line_bytes):
            out.write(raw + b"\n")
    _remember(context, claim, path)
    return path


def queued_bytes(session: Session, job: Job) -> int:
    """Bytes of input that the project's other live jobs still read. Its row stays locked: nobody adds to them."""
    session.get(Project, job.project_id, with_for_update={"key_share": True})  # new jobs may name it meanwhile
    return quota.queued_bytes(session, job.project_id, besides=job.id)


def _good_lines(session: Session, job_id: str) -> dict[int, tuple[int, int]]:
    """Per shard: its first line, and the bitmap of lines that succeeded."""
    found: dict[int, tuple[int, int]] = {}
    firsts = dict(session.execute(select(Shard.n, Shard.first_line).where(Shard.job_id == job_id)).all())
    for n, good in session.execute(select(Segment.n, Segment.good).where(Segment.job_id == job_id)):
        if n in firsts:  # or retention is taking the job: it is not known then, whatever is found here
            first, bitmap = found.get(n, (firsts[n], 0))
            found[n] = (first, bitmap | int.from_bytes(good, "little"))
    return found


def _left(handle: BinaryIO, good: dict[int, tuple[int, int]], max_bytes: int) -> Iterator[bytes]:
    spans = sorted(good.values())
    at = 0
    for number, text in enumerate(lines.read(handle, max_bytes)):
        while at + 1 < len(spans) and spans[at + 1][0] <= number:
            at += 1
        first, bitmap = spans[at] if spans else (0, 0)
        if number < first or not bitmap >> (number - first) & 1:
            yield text.raw or b""


def _remember(context: Context, claim: JobClaim, path: str) -> None:
    context.db.retrying(lambda session: ledger.reads_from(session, claim, path), context.stop)
