"""The statements of every step of every job, built once: building one costs many times what running it does.

Updates have their guard in the WHERE, whose values are called `its_…`; a MOVE sets the columns of all other values. The
statements are on tables: where a session holds the row as an object, `apply_values` sets the object's attributes.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Executable, Select, Update, and_, bindparam, case, exists, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.orm.attributes import set_committed_value

from jobs.db.base import table_of
from jobs.files.tables import File
from jobs.ledger import dependencies
from jobs.ledger.states import CLOSING, JobState, ShardState
from jobs.ledger.tables import TOKENS, Job, Outcome, Segment, Shard
from jobs.queues import Task

#: The states in which a job itself can be claimed, by task.
CLAIMABLE: dict[Task, frozenset[JobState]] = {
    Task.PLAN: frozenset({JobState.QUEUED}),
    Task.FINISH: frozenset(CLOSING),
}


def changes_one(session: Session, statement: Executable, values: Mapping[str, Any]) -> bool:
    """Run an UPDATE or DELETE; return whether its guard held for a row."""
    return session.connection().execute(statement, values).rowcount == 1


def apply_values(instance: DeclarativeBase, values: Mapping[str, Any]) -> None:
    """Set attributes of an object to what a statement has written to its row."""
    for name, value in values.items():
        set_committed_value(instance, name, value)


_job, _shard, _segment = table_of(Job), table_of(Shard), table_of(Segment)
_ITS_JOB = bindparam("its_job", type_=_job.c.id.type)
_ITS_N = bindparam("its_n", type_=_shard.c.n.type)
_ITS_EPOCH = bindparam("its_epoch", type_=_job.c.epoch.type)
_ITS_WORKER = bindparam("its_worker", type_=_job.c.worker_id.type)

# -- a job


def _move() -> Update:
    held = and_(_job.c.id == _ITS_JOB, _job.c.state == bindparam("its_state"), _job.c.epoch == _ITS_EPOCH)
    return update(_job).where(held)


def _take(task: Task) -> Update:
    free = and_(_job.c.id == _ITS_JOB, _job.c.state.in_(CLAIMABLE[task]), _job.c.worker_id.is_(None))
    if task is Task.FINISH:
        free = and_(free, ~exists().where(*_RUNNING))
    else:
        free = and_(free, _job.c.waiting_for.is_distinct_from(dependencies.WAITING))
    claimed = {"epoch": _job.c.epoch + 1, "heartbeat": 0, "worker_id": _ITS_WORKER, "waiting_for": None}
    return update(_job).where(free).values(claimed)


def _heartbeat() -> Update:
    claim_filter = and_(_job.c.id == _ITS_JOB, _job.c.epoch == _ITS_EPOCH, _job.c.worker_id == _ITS_WORKER)
    return update(_job).where(claim_filter).values(heartbeat=_job.c.heartbeat + 1)


def _has_shard(*states: ShardState) -> Select[bool]:
    return select(exists().where(_shard.c.job_id == _ITS_JOB, _shard.c.state.in_(states)))


_RUNNING = (_shard.c.job_id == _ITS_JOB, _shard.c.state == ShardState.RUNNING)
LOCK = select(Job).where(Job.id == _ITS_JOB).with_for_update().execution_options(populate_existing=True)
MOVE = _move()
TAKE = {task: _take(task) for task in CLAIMABLE}
HEARTBEAT = _heartbeat()
ANSWERED = update(_job).where(_job.c.id == _ITS_JOB, _job.c.waiting_for == "model").values(waiting_for=None)
BUSY = _has_shard(ShardState.RUNNING)
OPEN = _has_shard(ShardState.PENDING, ShardState.RUNNING)

# -- a shard


def _claim_filter() -> ColumnElement[bool]:
    return and_(
        _shard.c.job_id == _ITS_JOB,
        _shard.c.n == _ITS_N,
        _shard.c.epoch == _ITS_EPOCH,
        _shard.c.state == ShardState.RUNNING,
    )


def _take_shard(where: ColumnElement[bool]) -> Update:
    free = and_(_shard.c.job_id == _ITS_JOB, _shard.c.n == _ITS_N, _shard.c.state == ShardState.PENDING, where)
    claimed = {"state": ShardState.RUNNING, "epoch": _shard.c.epoch + 1, "heartbeat": 0, "worker_id": _ITS_WORKER}
    begun = case((_shard.c.done > 0, _shard.c.started_at), else_=bindparam("at"))
    claimed |= {"progressed": False, "started_at": begun}
    return update(_shard).where(free).values(claimed).returning(*_shard.c)


def _count() -> Update:
    """Build the statement that adds `its_done`, `its_failed` and the tokens to a shard, and notes its progress."""
    more = {name: _shard.c[name] + bindparam(f"its_{name}") for name in ("done", "failed", *TOKENS)}
    well = {"progressed": True, "stalls": 0, "isolated_line": None, "isolated_attempts": 0}
    return update(_shard).where(_claim_filter()).values({**more, **well})


_ITS_SEGMENTS = and_(_segment.c.job_id == _ITS_JOB, _segment.c.n == _ITS_N)
TAKE_SHARD = _take_shard(_shard.c.queue.is_(None))
TAKE_SHARD_THERE = _take_shard(_shard.c.queue == bindparam("its_queue"))
COUNT = _count()
HEARTBEAT_SHARD = update(_shard).where(_claim_filter()).values(heartbeat=_shard.c.heartbeat + 1)
SHARD_IS_THERE = select(_shard.c.n).where(_shard.c.job_id == _ITS_JOB, _shard.c.n == _ITS_N)
COVERED = select(_segment.c.covered).where(_ITS_SEGMENTS)
OUTCOMES = select(_segment.c.outcomes).where(_ITS_SEGMENTS)
SEGMENT_IS_THERE = select(_segment.c.seq).where(
    _ITS_SEGMENTS, _segment.c.epoch == _ITS_EPOCH, _segment.c.seq == bindparam("its_seq")
)

# -- what is added

ADD_SHARD, ADD_SEGMENT, ADD_FILE, ADD_OUTCOME = (insert(table_of(model)) for model in (Shard, Segment, File, Outcome))
