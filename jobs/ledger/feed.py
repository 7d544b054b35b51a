"""The feed of a project: all its events in one order, numbered from 1 without gaps.

    transaction ──insert──▶ event (position NULL) ──commit──▶ the leading dispatcher ──▶ position 1, 2, 3 … per project
                                                                                          ▲ a reader's cursor

A transaction that began early may commit late, so no number from before its commit can be a cursor: a reader that is
ahead would never see the event. Positions are given out after the commit, by one process at a time, and become visible
in their order. The events of one subject have positions in the order of their `seq`; those of different subjects have
them in the order of time, about.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, exists, select, tuple_, update
from sqlalchemy.orm import Session

from jobs.db.base import table_of
from jobs.db.engine import UNSEEN, WRITE_ROWS, insert_into
from jobs.webhooks.tables import Delivery, Event, EventHead

_ORDER = (Event.subject_id, Event.seq)
_KEY = tuple_(*_ORDER)
_UNNUMBERED = (
    select(Event.subject_id, Event.seq, Event.project_id, Event.created_at)
    .where(Event.position.is_(None))
    .order_by(*_ORDER)
)
_NUMBER = (
    update(table_of(Event))
    .where(Event.subject_id == bindparam("its_subject"), Event.seq == bindparam("its_seq"))
    .values(position=bindparam("its_position"))
)


class FeedBounds(NamedTuple):
    """The bounds of a feed: the last position given out, and the last one whose event retention has removed."""

    position: int
    removed: int


def number(session: Session, limit: int = WRITE_ROWS) -> int:
    """Give positions to up to `limit` committed events, and return how many got one.

    Both the rows and the heads of their projects are locked: of two processes that number, the second waits, and then
    finds the first one's rows numbered.
    """
    rows = session.execute(_UNNUMBERED.limit(limit).with_for_update()).all()
    if not rows:
        return 0
    heads = _lock_heads(session, {row.project_id for row in rows})
    numbered = []
    for row in _order_by_time(rows):
        head = heads[row.project_id]
        head.position += 1
        numbered.append({"its_subject": row.subject_id, "its_seq": row.seq, "its_position": head.position})
    session.connection().execute(_NUMBER, numbered)
    return len(numbered)


def unnumbered(session: Session) -> bool:
    """Return whether an event waits for its position."""
    return session.scalar(select(Event.seq).where(Event.position.is_(None)).limit(1)) is not None


def after(session: Session, project_id: str, position: int, limit: int) -> Sequence[Event]:
    """Return the events of a project that follow a position, in their order."""
    following = select(Event).where(Event.project_id == project_id, Event.position > position)
    return session.scalars(following.order_by(Event.position).limit(limit)).all()


def bounds(session: Session, project_id: str) -> FeedBounds:
    """Return where the feed of a project ends. Asked after `after`, it tells whether events before those are gone."""
    ends = select(EventHead.position, EventHead.removed).where(EventHead.project_id == project_id)
    row = session.execute(ends).first()
    return FeedBounds(row.position, row.removed) if row else FeedBounds(0, 0)


def forgettable(session: Session, before: float, limit: int) -> list[tuple[str, int]]:
    """Return the keys of numbered events from before a time that no delivery refers to."""
    return [(row.subject_id, row.seq) for row in session.execute(select(*_ORDER).where(*_old(before)).limit(limit))]


def forget(session: Session, keys: Collection[tuple[str, int]], before: float) -> None:
    """Delete those of these events that are still forgettable; the feeds of their projects begin behind them."""
    deletion = delete(Event).where(_KEY.in_(keys), *_old(before)).returning(Event.project_id, Event.position)
    removed: dict[str, int] = {}
    for project_id, position in session.execute(deletion, execution_options=UNSEEN):
        removed[project_id] = max(removed.get(project_id, 0), position or 0)
    for project_id, position in sorted(removed.items()):
        head = EventHead.project_id == project_id, EventHead.removed < position
        session.execute(update(EventHead).where(*head).values(removed=position), execution_options=UNSEEN)


def _old(before: float) -> tuple[Any, ...]:
    referred = exists().where(Delivery.event_id == Event.id)
    return Event.created_at < before, Event.position.is_not(None), ~referred


def _lock_heads(session: Session, project_ids: Collection[str]) -> dict[str, EventHead]:
    """Return the heads of these projects, made where there are none, locked in one order."""
    missing = insert_into(session, EventHead).on_conflict_do_nothing()
    session.execute(
        missing, [{"project_id": project_id, "position": 0, "removed": 0} for project_id in sorted(project_ids)]
    )
    locked = select(EventHead).where(EventHead.project_id.in_(project_ids)).order_by(EventHead.project_id)
    fresh = locked.with_for_update().execution_options(populate_existing=True)
    return {head.project_id: head for head in session.scalars(fresh)}


def _order_by_time(rows: Iterable[Any]) -> list[Any]:
    """Return rows, given in the order of their keys, by time. Clocks differ: an event is no earlier than its `seq`."""
    timed: list[tuple[float, Any]] = []
    for row in rows:
        same = bool(timed) and timed[-1][1].subject_id == row.subject_id
        timed.append((max(row.created_at, timed[-1][0]) if same else row.created_at, row))
    return [row for _, row in sorted(timed, key=lambda pair: pair[0])]
