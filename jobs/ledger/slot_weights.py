"""The slot weight of a shard: the part of a worker's slot that it takes, its lines divided by those of a full shard.

An engine is kept busy by lines, however many jobs they belong to: a slot is one full shard, or as many small ones as
have that many lines, up to `SHARDS_PER_SLOT`. A kind may have a weight of its own (documents take a slot); a shard that
is run one line at a time takes a whole slot.
"""

from functools import lru_cache
from typing import Final

from sqlalchemy import ColumnElement, Float, case, cast, literal, or_, select
from sqlalchemy.orm import Session

from jobs.ledger import kinds
from jobs.ledger.states import JobState, ShardState
from jobs.ledger.tables import Job, Shard
from jobs.settings import Settings

#: The slots of one engine: the full shards that it works on at once.
SLOTS: Final = 2
SHARDS_PER_SLOT: Final = 32
#: Lost leases without progress before a shard is run one line at a time.
STALLS_BEFORE_ISOLATION: Final = 2
WHOLE: Final[ColumnElement[float]] = literal(1.0, Float)


def weight_of_shards(config: Settings) -> ColumnElement[float]:
    """Return the weight as a column, for a row of `shard` joined to its `job`; 1 where there is no shard."""
    weights = tuple((row.name, row.slot_weight) for row in kinds.rows().values() if row.slot_weight is not None)
    return _slot_weight(config.shard_lines, weights)


def weight_of_shard(session: Session, job_id: str, n: int, config: Settings) -> float | None:
    """Return the weight of a shard; None when there is nothing to run."""
    statement = select(weight_of_shards(config)).select_from(Shard).join(Job, Job.id == Shard.job_id)
    waits = Shard.state == ShardState.PENDING, Job.state == JobState.RUNNING
    return session.scalar(statement.where(Shard.job_id == job_id, Shard.n == n, *waits))


@lru_cache(maxsize=8)
def _slot_weight(whole: int, weights: tuple[tuple[str, float], ...]) -> ColumnElement[float]:
    part = cast(Shard.lines, Float) / literal(float(whole), Float)
    alone = or_(Shard.lines.is_(None), Shard.stalls >= STALLS_BEFORE_ISOLATION, Shard.isolated_line.is_not(None))
    return case(
        *((Job.kind == name, literal(weight, Float)) for name, weight in weights),
        (or_(alone, part >= 1.0), WHOLE),
        (part <= 1 / SHARDS_PER_SLOT, literal(1 / SHARDS_PER_SLOT, Float)),
        else_=part,
    )
