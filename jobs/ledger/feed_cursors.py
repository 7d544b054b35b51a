"""Cursors: how far each sink, a system of the operator, has received the feed of each project.

    feed of a project 1 2 3 4 5 ─▶ due ──claim──▶ a worker sends what follows ─┬─ received: the cursor moves
                                    ▲                                          ├─ failed: due later, from there on
                                    └── the claim ends, its worker was killed ─┴─ nothing is left: due with more

An event is written in the transaction of what happened, and a cursor moves after its receipt: a sink receives each
event at least once, in the order of the feed. Retention does not wait for a sink.
"""

from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import UNSEEN, execute_and_count, insert_into
from jobs.webhooks.tables import EventHead, FeedCursor

_DELAY: Final = 5.0
_MAX_DELAY: Final = 300.0


@dataclass(frozen=True, slots=True)
class CursorClaim:
    """The right to send a sink what follows `position` in a feed that ends at `end`, until `due_at`."""

    sink: str
    project_id: str
    position: int
    end: int
    failures: int
    due_at: float


def due(session: Session, sink: str) -> CursorClaim | None:
    """Return what may be claimed of the project that has been due for the longest time; None where nothing is new."""
    position, due_at = func.coalesce(FeedCursor.position, 0), func.coalesce(FeedCursor.due_at, 0.0)
    of_sink = (FeedCursor.project_id == EventHead.project_id) & (FeedCursor.sink == sink)
    rows = (
        select(EventHead.project_id, position, EventHead.position, func.coalesce(FeedCursor.failures, 0), due_at)
        .outerjoin(FeedCursor, of_sink)
        .where(EventHead.position > position, due_at <= now())
        .order_by(due_at, EventHead.project_id)
        .limit(1)
    )
    row = session.execute(rows).first()
    return CursorClaim(sink, *row) if row is not None else None


def claim(session: Session, seen: CursorClaim, seconds: float) -> CursorClaim | None:
    """Claim what is due for some seconds; return None when another worker has claimed it."""
    row = {"sink": seen.sink, "project_id": seen.project_id, "position": 0, "failures": 0, "due_at": 0.0}
    session.execute(insert_into(session, FeedCursor).values(row).on_conflict_do_nothing())
    return _change(session, seen, position=seen.position, failures=seen.failures, due_at=now() + seconds)


def advance(session: Session, claimed: CursorClaim, position: int, seconds: float) -> CursorClaim | None:
    """Note the receipt of an event and claim the next for some seconds; return None when the claim is over."""
    return _change(session, claimed, position=position, failures=0, due_at=now() + seconds)


def release(session: Session, claimed: CursorClaim, position: int) -> None:
    """End a claim after the receipt of all events up to a position, unless it is over."""
    _change(session, claimed, position=position, failures=0, due_at=now())


def record_failure(session: Session, claimed: CursorClaim, position: int) -> None:
    """Note that a sink did not take the event after a position, unless the claim is over: it is asked later."""
    due_at = now() + min(_DELAY * 2 ** min(claimed.failures, 10), _MAX_DELAY)
    _change(session, claimed, position=position, failures=claimed.failures + 1, due_at=due_at)


def _change(session: Session, seen: CursorClaim, *, position: int, failures: int, due_at: float) -> CursorClaim | None:
    """Change a cursor that is still due as `seen`; return the claim then, or None where another claim came between."""
    same = (
        FeedCursor.sink == seen.sink,
        FeedCursor.project_id == seen.project_id,
        FeedCursor.position == seen.position,
        FeedCursor.due_at == seen.due_at,
    )
    changed = update(FeedCursor).where(*same).values(position=position, failures=failures, due_at=due_at)
    if not execute_and_count(session, changed, UNSEEN):
        return None
    return replace(seen, position=position, failures=failures, due_at=due_at)
