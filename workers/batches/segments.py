"""Commit the results of a shard's lines as segments, and close the shard with the last one.

records ──▶ buffer ──commit──▶ file, fsync ─▶ one transaction: the segment, the sums of the shard
                                                  ├─ ClaimLost: dropped
                                                  └─ last: shard done, the finish of a job of one shard claimed
"""

from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from sqlalchemy.orm import Session

from jobs.batches.batches import LENGTH
from jobs.errors import ClaimLost
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim, Tally
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job
from workers.batches.finishing import JobResults
from workers.runtime.attempts import ShardRun
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle
from workers.runtime.output_lines import LineRecord


class SegmentRun(ShardRun):
    """One claim on one shard whose lines have a record each.

    `buffer` holds the records that no segment has yet, `left` counts the lines that no segment covers.
    """

    def __init__(self, context: Context, claim: ShardClaim, handle: ClaimHandle) -> None:
        super().__init__(context, claim, handle)
        self.buffer: deque[LineRecord] = deque()
        self.left = claim.lines - claim.covered.bit_count()

    def results(self, _batch: Sequence[LineRecord], _tally: Tally) -> JobResults | None:
        """Return the results of a job whose lines are all in this segment; None where a later step makes them."""
        return None

    def commit(self) -> None:
        """Write a segment: its file, durable, then its row with the sums of the shard."""
        batch = [self.buffer.popleft() for _ in range(len(self.buffer))]
        if self.closed or (not batch and self.left):
            return
        self.left -= len(batch)
        last = not self.left
        tally = _tally(batch)
        data = b"".join(record.data for record in batch)
        path = shards.segment_path(self.claim.job.id, self.claim.n, self.claim.epoch, self.seq)
        if batch:
            self.context.storage.put(path, data)
        results = self.results(batch, tally) if len(batch) == self.claim.job.total else None
        try:
            self.write(lambda session: self._record(session, path, len(data), tally, last, results))
        except ClaimLost:
            self._discard(results)
            raise
        self._discard(results)
        if last and not self.context.db.sqlite and self.finishing is None:
            # two last shards may each have seen the other open: check again, now that both are committed
            self.write(lambda session: ledger.advance_job(session, self.claim.job.id, actor=self._actor))
        self.seq += 1
        self.closed = last

    def close(self) -> None:
        """Commit the last segment: the shard is done if every line is covered, else it is released."""
        if self.handle.lost.is_set():
            raise ClaimLost
        self.commit()
        if self.left:
            self.release(0.0, None)

    def write(self, work: Callable[[Session], None]) -> None:
        self.context.db.retrying(work)

    def _discard(self, results: JobResults | None) -> None:
        """Discard results that the job did not end with.

        After an error they may be in use: retention removes orphans later.
        """
        if results and not self.ended:
            results.discard(self.context)

    def _record(
        self, session: Session, path: str, length: int, tally: Tally, last: bool, results: JobResults | None
    ) -> None:
        self.ended = False
        if tally.covered:
            job = shards.commit(session, self.claim, self.seq, path, length, tally, last=last)
        else:
            job = shards.finish_empty(session, self.claim)
        if last and job and self.claim.lines == job.total:
            self._finish_at_once(session, job, results)
        elif last:
            ledger.advance_job(session, self.claim.job.id, actor=self._actor, locked=job)

    def _finish_at_once(self, session: Session, job: Job, results: JobResults | None) -> None:
        """Claim the finish of the job, and end it if there are `results`.

        A second run keeps the first claim if that counts.
        """
        before, worker_id = self.finishing, self.context.worker_id
        if before and (job.epoch, job.worker_id) == (before.epoch, worker_id):
            self.finishing = JobClaim(job, before.epoch, worker_id)
        else:
            self.finishing = ledger.claim_finish(session, job, worker_id)
        if results and self.finishing:
            ledger.close(session, self.finishing, results.values, results.files, results.outcomes, locked=job)
        self.ended = job.state in TERMINAL

    @property
    def _actor(self) -> str:
        return f"worker:{self.context.worker_id}"


def _tally(batch: Sequence[LineRecord]) -> Tally:
    tally = Tally()
    for record in batch:
        bit = 1 << record.line
        tally.covered |= bit
        tally.good |= bit if record.good else 0
        tally.cut_off |= bit if LENGTH in record.outcomes else 0
        tally.requests += record.requests
        tally.input_tokens += record.usage.input_tokens
        tally.cached_tokens += record.usage.cached_tokens
        tally.output_tokens += record.usage.output_tokens
        tally.reasoning_tokens += record.usage.reasoning_tokens
        if record.is_cached:
            tally.from_cache.update(requests=record.requests, **msgspec.structs.asdict(record.usage))
        for name in record.outcomes:
            tally.outcomes[name] = tally.outcomes.get(name, 0) + 1
        if record.seconds is not None:
            tally.took.append(record.seconds)
    return tally
