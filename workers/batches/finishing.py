"""Finish a batch: stream its segments into an output and an error file, once per line, in the order of the input.

    claim ─▶ each shard: its segments' records, by line ─┬─ good ─▶ output file
                └─ lines without a record ─▶ batch_expired / batch_cancelled ─┴─▶ error file
          ─▶ files durable ─▶ one transaction: file rows, final counts, terminal state

Counts and tokens are summed over the records read here, so that the job's numbers match its files. Memory holds the
records of one shard while they are small; of larger ones (vectors may be megabytes a line) only their locations. A
finisher that dies leaves two orphaned files; the next one writes its own.
Where results are missing in the storage, the job fails after some tries, and a retry of it runs every line again.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

from sqlalchemy import select

from jobs.batches import batches, lines
from jobs.batches.batches import BatchPayload
from jobs.clock import now
from jobs.errors import ClaimLost, NotFound, StorageFull, StorageUnavailable
from jobs.files.tables import File
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import Tally
from jobs.ledger.states import JobState
from jobs.ledger.tables import TOKENS, Job, Segment, Shard
from jobs.security.project_rules import MIN_EXPIRY_SECONDS, rules_of
from workers.runtime import outcomes, output_lines
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import LineRecord

log = logging.getLogger(__name__)
_SHARDS_AT_ONCE = 100
_HELD_BYTES = 32 << 20  # of a shard's results; larger results are read one at a time
_REASONS = {JobState.EXPIRING: output_lines.EXPIRED, JobState.CANCELLING: output_lines.CANCELLED}


def finish(context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
    """Assemble the results of a batch and end it.

    Raises: ClaimLost, NotFound, ResultsLost, StorageFull, StorageUnavailable.
    """
    _Finisher(context, claim, handle).run()


class ResultsLost(NotFound):
    """A completed shard without the results of some lines."""

    text = "A shard is done, but some of its lines have no result."


@dataclass(frozen=True, slots=True)
class JobResults:
    """The durable files of a job, and the values for its row. No row points to them yet.

    `outcomes` counts lines by outcome.
    """

    values: Mapping[str, Any]
    files: Sequence[File]
    outcomes: Mapping[str, int]

    def discard(self, context: Context) -> None:
        for file in self.files:
            context.storage.delete(file.path)


def assemble(context: Context, job: Job, batch: Sequence[LineRecord], tally: Tally) -> JobResults | None:
    """Write the files of a job from the records of its only segment; return None where the storage is unavailable."""
    counts = {"completed": tally.done - tally.failed, "failed": tally.failed, **tally.tokens(), "total": job.total}
    try:
        with ExitStack() as stack:
            output, errors = (_Output(context, stack, job, name) for name in ("output", "error"))
            for record in sorted(batch, key=lambda record: record.line):
                _, good, data = output_lines.parse(record.data)
                (output if good else errors).write(data)
    except (StorageFull, StorageUnavailable):
        return None
    return _results(output, errors, counts, tally.outcomes)


def _results(output: "_Output", errors: "_Output", values: dict[str, Any], words: Mapping[str, int]) -> JobResults:
    rows = {"output_file_id": output.row(), "error_file_id": errors.row()}
    ids = {name: row.id for name, row in rows.items() if row is not None}
    return JobResults({**values, **ids}, [row for row in rows.values() if row is not None], words)


@dataclass(frozen=True, slots=True)
class _Location:
    """The location of a record: the path of its segment, offset and length in bytes."""

    path: str
    offset: int
    length: int


#: Whether each line of a shard is good, and its output line, or where a large one lies.
Records = dict[int, tuple[bool, bytes | _Location]]


class _Output:
    """A file of the job, created with its first line."""

    def __init__(self, context: Context, stack: ExitStack, job: Job, name: str) -> None:
        self._context = context
        self._stack = stack
        self._job = job
        self._name = name
        self._handle: BinaryIO | None = None
        self.id = new_id("file-")
        self.bytes = 0

    def write(self, line: bytes) -> None:
        if self._handle is None:
            self._handle = self._stack.enter_context(self._context.storage.writer(f"files/{self.id}"))
        self._handle.write(line + b"\n")
        self.bytes += len(line) + 1

    def row(self) -> File | None:
        """Return the file's row, None when no line was written (OpenAI shows null)."""
        if self._handle is None:
            return None
        payload = BatchPayload.model_validate(self._job.payload)
        life = payload.output_expires_seconds or self._context.config.file_expiry_batch_seconds
        with self._context.db.read() as session:
            if rules_of(session, self._job.project_id).keeps_nothing:
                life = MIN_EXPIRY_SECONDS
        created = now()
        return File(
            id=self.id,
            project_id=self._job.project_id,
            purpose=batches.OUTPUT,
            filename=f"{self._job.id}_{self._name}.jsonl",
            bytes=self.bytes,
            path=f"files/{self.id}",
            created_at=created,
            expires_at=created + life,
        )


def shards_of(context: Context, job_id: str) -> Iterator[tuple[Shard, list[Segment]]]:
    """Yield the shards of a job in order, each with its segments."""
    page = _page(context, job_id, -1)
    yield from page
    while len(page) == _SHARDS_AT_ONCE:
        page = _page(context, job_id, page[-1][0].n)
        yield from page


def _page(context: Context, job_id: str, after: int) -> list[tuple[Shard, list[Segment]]]:
    with context.db.read() as session:
        page = session.scalars(
            select(Shard).where(Shard.job_id == job_id, Shard.n > after).order_by(Shard.n).limit(_SHARDS_AT_ONCE)
        ).all()
        numbers = [shard.n for shard in page]
        segments = session.scalars(select(Segment).where(Segment.job_id == job_id, Segment.n.in_(numbers))).all()
    return [(shard, [segment for segment in segments if segment.n == shard.n]) for shard in page]


def records_of(context: Context, segments: Sequence[Segment]) -> Records:
    """Return the records of a shard's segments, by line."""
    held = sum(segment.length for segment in segments) <= _HELD_BYTES
    records: Records = {}
    for segment in segments:
        with context.storage.reader(segment.path) as handle:
            offset = 0
            for raw in handle:
                line, good, data = output_lines.parse(raw)
                records[line] = good, data if held else _Location(segment.path, offset, len(raw))
                offset += len(raw)
    return records


def output_line(context: Context, record: bytes | _Location) -> bytes:
    """Return the output line of a record."""
    if isinstance(record, bytes):
        return record
    return output_lines.parse(context.storage.piece(record.path, record.offset, record.length))[2]


def outputs_of(context: Context, job_id: str) -> Iterator[bytes]:
    """Yield the output lines of a job in the order of its input."""
    for _, segments in shards_of(context, job_id):
        records = records_of(context, segments)
        for line in sorted(records):
            yield output_line(context, records[line][1])


class _Finisher:
    """One run of assembling a job's results."""

    def __init__(self, context: Context, claim: JobClaim, handle: ClaimHandle) -> None:
        self.context = context
        self.claim = claim
        self.job = claim.job
        self.handle = handle
        self.reason = _REASONS.get(JobState(claim.job.state))
        self.counts = dict.fromkeys(("completed", "failed", *TOKENS), 0)
        self.outcomes = Counter[str]()
        self.total = claim.job.total

    def run(self) -> None:
        with ExitStack() as stack:
            self.output = _Output(self.context, stack, self.job, "output")
            self.errors = _Output(self.context, stack, self.job, "error")
            if self.job.in_progress_at is None:
                self._write_unplanned()
            else:
                for shard, segments in shards_of(self.context, self.job.id):
                    if self.handle.lost.is_set():
                        raise ClaimLost
                    self._shard(shard, segments)
        self._close()  # the stack has closed the writers: the files are durable

    def _shard(self, shard: Shard, segments: list[Segment]) -> None:
        records = records_of(self.context, segments)
        for segment in segments:
            for name in TOKENS:
                self.counts[name] += getattr(segment, name)
            self.outcomes.update(segment.outcomes or {})
        self.counts["completed"] += sum(good for good, _ in records.values())
        self.counts["failed"] += sum(not good for good, _ in records.values())
        if len(records) < shard.lines:
            self._write_unprocessed(shard, records)
        for line in sorted(records):
            good, record = records[line]
            (self.output if good else self.errors).write(output_line(self.context, record))

    def _write_unprocessed(self, shard: Shard, records: Records) -> None:
        """Write error lines for lines that were not executed. They are not counted."""
        if self.reason is None:
            raise ResultsLost(f"{shard.lines - len(records)} lines of shard {shard.n} have none.")
        self.outcomes.update(dict.fromkeys(outcomes.error_outcomes(self.reason[0]), shard.lines - len(records)))
        with self.context.storage.reader(self.job.input_path or "", shard.offset) as handle:
            texts = lines.split(handle.read(shard.length))
        for line, raw in enumerate(texts):
            if line not in records:
                item_id = output_lines.line_id(self.job.id, shard.n, line)
                records[line] = (False, output_lines.error_line(item_id, lines.id_of(raw) or "", *self.reason))

    def _write_unplanned(self) -> None:
        """Write an error line for each readable line of a job that was stopped before it was planned."""
        assert self.reason is not None
        if self.job.input_path is None:
            return
        try:
            with self.context.storage.reader(self.job.input_path) as handle:
                for text in lines.read(handle):
                    self._write_stopped(text)
                    if self.handle.lost.is_set():
                        raise ClaimLost
        except NotFound:
            log.warning("input_missing", extra={"job_id": self.job.id})

    def _write_stopped(self, text: lines.InputLine) -> None:
        custom_id = lines.id_of(text.raw)
        if custom_id is None or self.reason is None:
            return
        item_id = output_lines.line_id(self.job.id, self.total >> 12, self.total & 0xFFF)
        self.errors.write(output_lines.error_line(item_id, custom_id, *self.reason))
        self.outcomes.update(outcomes.error_outcomes(self.reason[0]))
        self.total += 1

    def _close(self) -> None:
        result = _results(self.output, self.errors, {**self.counts, "total": self.total}, self.outcomes)
        self.context.db.retrying(
            lambda session: ledger.close(session, self.claim, result.values, result.files, result.outcomes)
        )
        log.info("job_closed", extra={"job_id": self.job.id, **self.counts})
