"""Cut the lines of a job's input into shards of bytes, and let the job run.

    lines ──add──▶ the shard being filled ──finish──▶ planned: 50 shards a transaction, the job runs with the last ones
              └─ errors of lines ───────────finish──▶ rejected: the job fails, no line was run

Until the job is planned, messages of its shards are ignored. When a planner dies, the next one removes its shards and
starts again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar

from sqlalchemy.orm import Session

from jobs.batches.lines import Bad, InputLine
from jobs.db.engine import WRITE_ROWS
from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.tables import Shard
from workers.runtime.attempts import Abandoned
from workers.runtime.context import Context
from workers.runtime.heartbeat import ClaimHandle

T = TypeVar("T")

#: Limit of the errors of a rejected job.
MAX_ERRORS: Final = 1000
_SHARDS_AT_ONCE: Final = 50


class ShardWriter:
    """The lines of one job in their order, cut into shards of bounded lines and bytes.

    `total` counts the lines, `bytes` are theirs. `queue`, `model` and `serves_as` are those of the planned job. `check`
    returns the errors of a job whose lines are all good; it runs in the transaction that lets the job run. `payload`
    replaces the job's, unless it is None.

    Raises: Abandoned, while the disk is nearly full.
    """

    def __init__(
        self,
        context: Context,
        claim: JobClaim,
        handle: ClaimHandle | None = None,
        *,
        queue: str = "",
        check: Callable[[Session], Sequence[Bad]] = lambda _session: (),
    ) -> None:
        if context.low_on_disk():
            raise Abandoned(5.0, "disk")
        self.claim = claim
        self.queue = queue
        self.model: str | None = None
        self.serves_as: str | None = None
        self.payload: dict[str, Any] | None = None
        self.errors: list[Bad] = []
        self.total = self.bytes = 0
        self._context, self._config, self._handle, self._check = context, context.config, handle, check
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._path: str | None = None
        self._refusals: Sequence[Bad] = ()

    @property
    def is_full(self) -> bool:
        """Return whether another line would change nothing: the job has too many errors or lines."""
        return len(self.errors) >= MAX_ERRORS or self.total > self._config.batch_max_lines

    @contextmanager
    def own_input(self) -> Iterator[None]:
        """Write the lines that are added to a file of the job's own, which becomes its input."""
        path = f"jobs/{self.claim.job.id}/input-{self.claim.epoch}.jsonl"
        with self._context.storage.writer(path) as self._file:
            yield
        self._path = path

    def add(self, line: InputLine | Bad, output_tokens: int = 0) -> None:
        """Add a line, or the error of one. What stands between lines, such as blank ones, belongs to the shard before.

        `output_tokens` is the most that the line may be answered with.

        Raises: Abandoned, where the claim has ended.
        """
        self._check_claim()
        if isinstance(line, Bad):
            self.errors.append(line)
        elif not self.errors:
            self._cut(line, output_tokens)

    def finish(self) -> None:
        """Let the job run, or reject it. Raises Abandoned, ClaimLost."""
        if self.claim.epoch > 1:  # an earlier planner may have cut shards
            self._remove_shards()
        while not self.errors and len(self._shards) > _SHARDS_AT_ONCE:
            self._check_claim()
            full, self._shards = self._shards[:_SHARDS_AT_ONCE], self._shards[_SHARDS_AT_ONCE:]
            self._write(partial(shards.cut, claim=self.claim, queue=self.queue, shards=full))
            self._context.db.breathe(self._context.stop)  # other processes write meanwhile
        self._check_claim()
        if not self._write(self.let_run):
            self._remove_shards()
            self._write(self.reject)

    def let_run(self, session: Session) -> bool:
        """Let the job run with the shards that are left; return False where it has errors. May be called again."""
        self._refusals = self.errors or self._check(session)
        if self._refusals:
            return False
        if self._path is not None:
            ledger.set_retry_input(session, self.claim, self._path)
        shards.cut(session, self.claim, self.queue, self._shards)
        ledger.begin_running(
            session,
            self.claim,
            total=self.total,
            model=self.model,
            queue=self.queue,
            serves_as=self.serves_as,
            payload=self.payload,
        )
        return True

    def reject(self, session: Session) -> None:
        """Fail the job with the errors that kept it from running."""
        ledger.reject(session, self.claim, [bad.as_dict() for bad in self._refusals])

    def _cut(self, line: InputLine, output_tokens: int) -> None:
        if self._file is not None:
            self._file.write((line.raw or b"") + b"\n")
        end = line.offset + line.length
        if not self._shards or self._exceeds(self._shards[-1], end):
            position = {"n": len(self._shards), "first_line": self.total, "offset": line.offset}
            self._shards.append(Shard(job_id=self.claim.job.id, lines=0, length=0, max_output_tokens=0, **position))
        shard = self._shards[-1]
        shard.lines += 1
        shard.max_output_tokens = (shard.max_output_tokens or 0) + output_tokens
        shard.length = end - shard.offset
        self.total += 1
        self.bytes += line.length

    def _exceeds(self, shard: Shard, end: int) -> bool:
        return shard.lines >= self._config.shard_lines or end - shard.offset > shards.MAX_BYTES

    def _check_claim(self) -> None:
        if self._handle is not None and self._handle.ended:
            raise Abandoned

    def _remove_shards(self) -> None:
        while self._write(lambda session: shards.uncut(session, self.claim, WRITE_ROWS)):
            self._context.db.breathe(self._context.stop)

    def _write(self, work: Callable[[Session], T]) -> T:
        return self._context.db.retrying(work, self._context.stop)
