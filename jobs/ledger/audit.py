"""The audit log: appended in the caller's transaction, sealed into a hash chain afterwards.

    hash(n) = SHA-256( hash(n-1) ‖ canonical JSON of row n )        canonical: sorted keys, no spaces (RFC 8785)

A head row locked by every writer would make all writers wait for each other, so the leading dispatcher alone
seals, every second. `verify` finds an edited, deleted, swapped, inserted or cut-off row, and rows left unsealed.
A chain that was recomputed as a whole is found with an anchor alone: a head that is kept elsewhere
(`jobs.ledger.anchors`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.db.engine import insert_into
from jobs.ledger.tables import Audit, AuditHead

GENESIS = "0" * 64
_HEAD = 1
_SEALED_AT_ONCE = 200
_ROWS_AT_ONCE = 1000
_INSERT = insert(table_of(Audit))


def record(
    session: Session,
    *,
    actor: str,
    action: str,
    target: str,
    project_id: str | None = None,
    source: str | None = None,
    destination: str | None = None,
    request_id: str | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """Append one row in the caller's transaction. `details` never holds prompts, answers or secrets."""
    row = {
        "at": int(now() * 1_000_000),
        "actor": actor,
        "action": action,
        "target": target,
        "project_id": project_id,
        "source": source,
        "destination": destination,
        "request_id": request_id,
        "details": details,
    }
    session.connection().execute(_INSERT, {name: value for name, value in row.items() if value is not None})


def record_all(session: Session, targets: Iterable[tuple[str, str | None]], *, actor: str, action: str) -> None:
    """Append a row for each of many targets, each with its project, in one statement."""
    columns = {"at": int(now() * 1_000_000), "actor": actor, "action": action}
    rows = [{**columns, "target": target, "project_id": project_id} for target, project_id in targets]
    if rows:
        session.execute(insert(Audit), rows)


def seal(session: Session, limit: int = _SEALED_AT_ONCE) -> int:
    """Chain up to `limit` unsealed rows; return their number. One process at a time: the head row is locked."""
    first = insert_into(session, AuditHead).values(id=_HEAD, seal=0, hash=GENESIS)
    session.execute(first.on_conflict_do_nothing())
    head = session.scalars(select(AuditHead).where(AuditHead.id == _HEAD).with_for_update()).one()
    rows = session.scalars(select(Audit).where(Audit.seal.is_(None)).order_by(Audit.id).limit(limit)).all()
    for row in rows:
        head.seal += 1
        head.hash = digest(head.hash, row, head.seal)
        row.seal, row.hash = head.seal, head.hash
    return len(rows)


def unsealed(session: Session) -> bool:
    """Return whether a row waits for its seal."""
    return session.scalar(select(Audit.id).where(Audit.seal.is_(None)).limit(1)) is not None


def digest(previous: str, row: Audit | Row[Any], seal: int) -> str:
    """Return the hash of one row, given the hash of its predecessor."""
    fields = {
        "id": row.id,
        "seal": seal,
        "at": row.at,
        "actor": row.actor,
        "action": row.action,
        "project_id": row.project_id,
        "target": row.target,
        "source": row.source,
        "destination": row.destination,
        "request_id": row.request_id,
        "details": row.details,
    }
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(previous.encode() + text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of `verify`: the number of rows checked, the last hash (to store elsewhere), and faults in words."""

    rows: int
    head: str
    faults: tuple[str, ...]


def verify(session: Session, *, unsealed_after: float = 60.0, anchors: Iterable[tuple[int, str]] = ()) -> Verdict:
    """Walk the whole chain. Each of `anchors` is a seal and its hash from before, which the chain must still have."""
    walk = _Walk(anchors)
    grown, head = True, (0, GENESIS)
    while grown:  # a reader may see what is sealed meanwhile: walk until the head is no further
        grown = walk.over(_sealed(session, walk.seal))
        head = head_of(session)
        grown = grown and head[0] > walk.seal
    faults = walk.faults + _tail(walk, head) + _unsealed(session, unsealed_after)
    return Verdict(walk.seal, walk.hash, tuple(faults))


class _Walk:
    """The state of a walk along the chain: how far it has come, and the faults that it found."""

    def __init__(self, anchors: Iterable[tuple[int, str]]) -> None:
        self.anchors: dict[int, set[str]] = {}
        for seal, digest in anchors:
            self.anchors.setdefault(seal, set()).add(digest)
        self.seal = 0
        self.hash = GENESIS
        self.faults: list[str] = []

    def over(self, rows: Iterable[Row[Any]]) -> bool:
        """Check some rows; return False when there were none."""
        before = self.seal
        for row in rows:
            if row.seal != self.seal + 1:
                self.faults.append(f"seal {self.seal + 1} is missing (found {row.seal})")
            if digest(self.hash, row, row.seal) != row.hash:
                self.faults.append(f"row {row.id} (seal {row.seal}) does not match its hash")
            if row.seal in self.anchors and self.anchors[row.seal] != {row.hash}:
                self.faults.append(f"seal {row.seal} does not match the anchor")
            self.seal, self.hash = row.seal, row.hash
        return self.seal != before


def _sealed(session: Session, after: int) -> Iterator[Row[Any]]:
    statement = select(*Audit.__table__.columns).order_by(Audit.seal).limit(_ROWS_AT_ONCE)
    while rows := session.execute(statement.where(Audit.seal > after)).all():
        yield from rows
        after = rows[-1].seal


def head_of(session: Session) -> tuple[int, str]:
    """Return the last seal and its hash; 0 and GENESIS for a chain without rows."""
    row = session.execute(select(AuditHead.seal, AuditHead.hash).where(AuditHead.id == _HEAD)).first()
    return (row.seal, row.hash) if row else (0, GENESIS)


def _tail(walk: _Walk, head: tuple[int, str]) -> list[str]:
    faults = []
    if head != (walk.seal, walk.hash):
        faults.append(f"the head says {head[0]} rows, the chain ends at {walk.seal}")
    last = max(walk.anchors, default=0)
    if last > walk.seal:
        faults.append(f"the chain is shorter than the anchor ({last})")
    return faults


def _unsealed(session: Session, after: float) -> list[str]:
    old = int((now() - after) * 1_000_000)
    unsealed = session.scalars(select(Audit.id).where(Audit.seal.is_(None), Audit.at < old).limit(10)).all()
    return [f"row {row_id} is unsealed for over {after:.0f} s" for row_id in unsealed]
