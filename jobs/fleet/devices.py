"""The device that a training has to itself: who uses it is read from claims and workers, and stored nowhere else.

    training claimed ─▶ engines on its device: take nothing new, end what runs, close ─▶ all `closed` ─▶ it trains
    claim ended, lost, or its worker gone ─▶ the engines open again

An engine's worker writes its row before it looks for a training, and a training is claimed before it looks for engines:
whatever is killed in between, one of the two sees the other.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from jobs.fleet.tables import Worker
from jobs.ledger.states import ShardState
from jobs.ledger.tables import Shard

#: The states of a worker that ends what runs for a training, and whose engines are closed for one.
YIELDING: Final = "yielding"
CLOSED: Final = "closed"
TRAINING_POOL: Final = "finetune"
ENGINE_POOLS: Final = ("gpu", "tuned")


def is_training(session: Session, host_devices: str | None) -> bool:
    """Return whether a worker has claimed a training on a device."""
    claimed = exists().where(Shard.state == ShardState.RUNNING, Shard.worker_id == Worker.id)
    trainers = Worker.pool == TRAINING_POOL, Worker.host_devices == host_devices
    return session.scalar(select(Worker.id).where(*trainers, claimed).limit(1)) is not None


def open_engines(session: Session, host_devices: str | None) -> Sequence[str]:
    """Return the workers whose engines use a device, or are about to."""
    engines = Worker.pool.in_(ENGINE_POOLS), Worker.host_devices == host_devices, Worker.state != CLOSED
    return session.scalars(select(Worker.id).where(*engines).order_by(Worker.id)).all()
