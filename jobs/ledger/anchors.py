"""Anchors of the audit chain: its head, once a day, where the database's owner cannot change it.

    due ─▶ begin: id, seal and hash into the database ─▶ sent to a file or a webhook ─▶ finish

A chain that somebody recomputes as a whole agrees with itself; it does not agree with an anchor from before. A crash
between `begin` and `finish` sends the same anchor again, under the same id.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import insert_into
from jobs.fleet.tables import Meta
from jobs.ids import new_id
from jobs.ledger import audit

EVERY_SECONDS: Final = 86_400.0
_KEY: Final = "audit_anchor"
_TYPE: Final = "audit.anchor"


@dataclass(frozen=True, slots=True)
class Anchor:
    """The head of the chain at one moment: the last seal and its hash."""

    id: str
    at: float
    seal: int
    hash: str
    sent: bool = False

    def body(self) -> bytes:
        """Return the anchor as OpenAI's envelope of an event, in one line of JSON."""
        envelope = {"id": self.id, "object": "event", "created_at": int(self.at), "type": _TYPE}
        return json.dumps({**envelope, "data": {"seal": self.seal, "hash": self.hash}}, separators=(",", ":")).encode()


def is_due(session: Session) -> bool:
    """Return whether an anchor is to be sent now: one that was begun, or the first in a day."""
    last, (seal, _) = _last(session), audit.head_of(session)
    return bool(seal) and (last is None or not last.sent or abs(now() - last.at) >= EVERY_SECONDS)


def begin(session: Session) -> Anchor:
    """Return the anchor that was begun and not sent, or begin one of the chain's head."""
    last = _last(session)
    if last is not None and not last.sent:
        return last
    seal, digest = audit.head_of(session)
    anchor = Anchor(new_id("anchor_"), now(), seal, digest)
    _note(session, asdict(anchor))
    return anchor


def finish(session: Session, anchor: Anchor) -> None:
    """Note that an anchor was sent."""
    _note(session, {**asdict(anchor), "sent": True})


def append(path: Path, anchor: Anchor) -> None:
    """Add an anchor to a file of JSON lines, durably. Raises OSError."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        cut_short = file.read(1) not in (b"", b"\n")  # by a crash
        file.write((b"\n" if cut_short else b"") + anchor.body() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[tuple[int, str]]:
    """Return the seal and the hash of every anchor in a file. Raises OSError, and ValueError for other lines.

    A line that was cut short, as a crash leaves it, counts for nothing.
    """
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    return [anchor for line in lines if (anchor := _parse(line)) is not None]


def _parse(line: str) -> tuple[int, str] | None:
    try:
        envelope = json.loads(line)
    except ValueError:
        if line.startswith("{") and not line.endswith("}"):
            return None
        raise
    try:
        return int(envelope["data"]["seal"]), str(envelope["data"]["hash"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"no anchor: {line[:80]}") from None


def _last(session: Session) -> Anchor | None:
    row = session.get(Meta, _KEY, populate_existing=True)
    return Anchor(**json.loads(row.value)) if row else None


def _note(session: Session, anchor: dict[str, Any]) -> None:
    value = {"value": json.dumps(anchor)}
    insert = insert_into(session, Meta).values(key=_KEY, **value)
    session.execute(insert.on_conflict_do_update(index_elements=["key"], set_=value))
