"""One attempt at a piece of work, under its claim: how it says that it has to wait, and what runs of shards share."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jobs.ledger import ledger, shards
from jobs.ledger.ledger import JobClaim
from jobs.ledger.shards import ShardClaim
from jobs.ledger.states import JobState
from workers.runtime.context import Context
from workers.runtime.heartbeat import Hold


class Abandoned(Exception):
    """The claim ended, or the work has to wait; `delay` and `waiting_for` say how it goes on."""

    def __init__(self, delay: float = 0.0, waiting_for: str | None = None) -> None:
        super().__init__(waiting_for)
        self.delay = delay
        self.waiting_for = waiting_for


def stop_all(context: Context, claim: JobClaim, end: JobState, errors: Sequence[Mapping[str, Any]] = ()) -> None:
    """Stop all that a job which comes to this `end` will not make, some in each transaction. Raises Fenced."""
    while context.db.retrying(partial(ledger.stop, claim=claim, end=end, errors=errors)):
        context.db.breathe(context.stop)


class ShardRun:
    """One claim on one shard.

    `closed`: all of the shard is done. `finishing`: the claim on the job that came with that. `ended`: the job ended.
    """

    finishing: JobClaim | None = None
    ended = False

    def __init__(self, context: Context, claim: ShardClaim, hold: Hold) -> None:
        self.context = context
        self.claim = claim
        self.hold = hold
        self.seq = 0
        self.closed = False

    @property
    def careful(self) -> bool:
        """Whether lines are run one at a time, each named before, since workers died of this shard."""
        return self.claim.stalls >= self.context.config.stalls_before_careful or self.claim.trying_line is not None

    def all(self) -> None:
        """Run what no segment covers. Raises Abandoned, Fenced, GaveUp, StorageFull, StorageAway, NotFound."""
        raise NotImplementedError

    def give_back(self, delay: float, waiting_for: str | None) -> None:
        """End the claim without closing the shard."""
        self.context.db.retrying(
            lambda session: shards.give_back(session, self.claim, delay=delay, waiting_for=waiting_for)
        )
