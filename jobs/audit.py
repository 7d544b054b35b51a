"""The audit log: appended in the caller's transaction, sealed into a hash chain afterwards.

    hash(n) = SHA-256( hash(n-1) ‖ canonical JSON of row n )        canonical: sorted keys, no spaces (RFC 8785)

A head row locked by every writer would make all writers wait for each other, so the leading dispatcher alone
seals, every second. `verify` finds an edited, deleted, swapped, inserted or cut-off row, and rows left unsealed.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.models import Audit, AuditHead

GENESIS = "0" * 64
_HEAD = 1
_SEALED_AT_ONCE = 200


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
    session.add(
        Audit(
            at=int(now() * 1_000_000),
            actor=actor,
            action=action,
            target=target,
            project_id=project_id,
            source=source,
            destination=destination,
            request_id=request_id,
            details=details,
        )
    )


def seal(session: Session, limit: int = _SEALED_AT_ONCE) -> int:
    """Chain up to `limit` unsealed rows; returns how many. One sealer at a time (the head row is locked)."""
    head = session.scalar(select(AuditHead).where(AuditHead.id == _HEAD).with_for_update())
    if head is None:
        head = AuditHead(id=_HEAD, seal=0, hash=GENESIS)
        session.add(head)
    rows = session.scalars(select(Audit).where(Audit.seal.is_(None)).order_by(Audit.id).limit(limit)).all()
    for row in rows:
        head.seal += 1
        head.hash = digest(head.hash, row, head.seal)
        row.seal, row.hash = head.seal, head.hash
    return len(rows)


def unsealed(session: Session) -> bool:
    """Whether a row waits for its seal."""
    return session.scalar(select(Audit.id).where(Audit.seal.is_(None)).limit(1)) is not None


def digest(previous: str, row: Audit, seal: int) -> str:
    """The hash of one row, given its predecessor's."""
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
    """What `verify` found: rows checked, the last hash (to keep elsewhere), and faults in words."""

    rows: int
    head: str
    faults: tuple[str, ...]


def verify(session: Session, *, unsealed_after: float = 60.0, anchor: tuple[int, str] | None = None) -> Verdict:
    """Walk the whole chain. `anchor` is a (seal, hash) noted earlier: it proves that nothing before was rewritten."""
    faults: list[str] = []
    previous, expected = GENESIS, 0
    for row in _sealed(session):
        expected += 1
        if row.seal != expected:
            faults.append(f"seal {expected} is missing (found {row.seal})")
            expected = row.seal or expected
        if digest(previous, row, expected) != row.hash:
            faults.append(f"row {row.id} (seal {row.seal}) does not match its hash")
        previous = row.hash or previous
        if anchor and row.seal == anchor[0] and row.hash != anchor[1]:
            faults.append(f"seal {anchor[0]} does not match the anchor")
    faults += _tail(session, expected, previous, anchor)
    faults += _unsealed(session, unsealed_after)
    return Verdict(expected, previous, tuple(faults))


def _sealed(session: Session) -> Iterator[Audit]:
    statement = select(Audit).where(Audit.seal.is_not(None)).order_by(Audit.seal)
    yield from session.scalars(statement.execution_options(yield_per=1000))


def _tail(session: Session, last: int, last_hash: str, anchor: tuple[int, str] | None) -> list[str]:
    head = session.get(AuditHead, _HEAD)
    sealed, hashed = (head.seal, head.hash) if head else (0, GENESIS)
    faults = []
    if (sealed, hashed) != (last, last_hash):
        faults.append(f"the head says {sealed} rows, the chain ends at {last}")
    if anchor and anchor[0] > last:
        faults.append(f"the chain is shorter than the anchor ({anchor[0]})")
    return faults


def _unsealed(session: Session, after: float) -> list[str]:
    old = int((now() - after) * 1_000_000)
    found = session.scalars(select(Audit.id).where(Audit.seal.is_(None), Audit.at < old).limit(10)).all()
    return [f"row {row_id} is unsealed for over {after:.0f} s" for row_id in found]
