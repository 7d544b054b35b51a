"""The life of a job, one table for every kind.

    queued ──plan──▶ running ──last shard──▶ finishing ──▶ succeeded
      │  │             │  │                      │
      │  │             │  └──deadline──▶ expiring ──▶ expired
      │  │             └────cancel─────▶ cancelling ──▶ cancelled
      │  └──deadline──▶ expiring         ▲   finishing, expiring and cancelling may still fail
      ├─────cancel───────────────────────┘
      └──bad input──▶ failed

Terminal states never change; a retry is a new job with `retry_of`. `ledger.move` is the only way along an arrow.
The worker of a job (planning, finishing) is noted as a claim with an epoch on its row and not as a state, so that a
crash never turns a polled state back.
"""

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHING = "finishing"
    EXPIRING = "expiring"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class ShardState(StrEnum):
    """The state of a shard: pending ⇄ running → done; pending again when a claim is released or lost."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"


_S = JobState
MOVES: dict[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.RUNNING, _S.FAILED, _S.CANCELLING, _S.EXPIRING}),
    _S.RUNNING: frozenset({_S.FINISHING, _S.CANCELLING, _S.EXPIRING}),
    _S.FINISHING: frozenset({_S.SUCCEEDED, _S.FAILED}),
    _S.EXPIRING: frozenset({_S.EXPIRED, _S.FAILED}),
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.FAILED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.CANCELLED: frozenset(),
}
TERMINAL: frozenset[JobState] = frozenset(state for state, targets in MOVES.items() if not targets)
LIVE: frozenset[JobState] = frozenset(JobState) - TERMINAL

#: Where `finish` takes a job from each state it may be claimed in.
CLOSING: dict[JobState, JobState] = {
    _S.FINISHING: _S.SUCCEEDED,
    _S.EXPIRING: _S.EXPIRED,
    _S.CANCELLING: _S.CANCELLED,
}
