"""The audit log: appended in the caller's transaction, sealed into a hash chain and signed afterwards.

    hash(n)      = SHA-256( hash(n-1) ‖ canonical JSON of row n )        canonical: sorted keys, no spaces (RFC 8785)
    signature(n) = HMAC-SHA-256( audit key, n ‖ hash(n) )                of the last signed row, in the head
    start(n)     = HMAC-SHA-256( audit key, "start" ‖ n ‖ hash(n) )      of the last row that retention has removed

A head row locked by every writer would make all writers wait for each other, so the leading dispatcher alone
seals and signs, every second. `verify` finds an edited, deleted, swapped or inserted row, and rows left unsealed. The
audit key is no row of the database (`jobs.security.audit_key`), so that whoever may only write there can neither
rewrite the chain as a whole nor cut off its end. A signature moves on over rows that continue what it covers, and over
no others: a forged chain is not signed later. Whoever puts an earlier head back, with its signature, can have what
followed it sealed and signed again; an anchor shows that: a head that is kept elsewhere (`jobs.ledger.anchors`).

Retention removes the oldest rows (`remove_oldest`). The chain then begins behind the start, whose hash and signature
stay. Only rows that continue the start, and that the head's signature covers, are removed: an edited row stays, and so
does what shows that it was edited.
"""

import hashlib
import hmac
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.base import table_of
from jobs.db.engine import UNSEEN, insert_into
from jobs.ledger.tables import Audit, AuditHead
from jobs.logs import Seldom

GENESIS = "0" * 64
HEAD, START = 1, 2  # the ids of their rows
_KEY = "key:"
_SEALED_AT_ONCE = 200
_ROWS_AT_ONCE = 1000
_INSERT = insert(table_of(Audit))

log = logging.getLogger(__name__)
_not_signed = Seldom(log, "audit_log_not_signed", seconds=3600.0)
_not_removed = Seldom(log, "audit_rows_not_removed", seconds=3600.0)


def actor_of(key_id: str) -> str:
    """Return the actor of what is done with a key."""
    return f"{_KEY}{key_id}"


def key_of(actor: str) -> str | None:
    """Return the id of the key that `actor` acted with; None where it is a command or a process."""
    return actor.removeprefix(_KEY) if actor.startswith(_KEY) else None


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
    head = lock_head(session)
    rows = session.scalars(select(Audit).where(Audit.seal.is_(None)).order_by(Audit.id).limit(limit)).all()
    for row in rows:
        head.seal += 1
        head.hash = digest(head.hash, row, head.seal)
        row.seal, row.hash = head.seal, head.hash
    return len(rows)


def lock_head(session: Session) -> AuditHead:
    """Return the head, which no other transaction changes until the end of this one."""
    first = insert_into(session, AuditHead).values(id=HEAD, seal=0, hash=GENESIS)
    session.execute(first.on_conflict_do_nothing())
    return session.scalars(select(AuditHead).where(AuditHead.id == HEAD).with_for_update()).one()


def unsealed(session: Session) -> bool:
    """Return whether a row waits for its seal."""
    return session.scalar(select(Audit.id).where(Audit.seal.is_(None)).limit(1)) is not None


def sign(session: Session, key: str) -> int:
    """Sign the chain as it is now, whatever signature it has; return the last seal."""
    head, start = lock_head(session), _start(session)
    head.signed, head.signature = head.seal, signature(key, head.seal, head.hash)
    if start.seal:
        start.signed, start.signature = start.seal, _start_signature(key, start)
    return head.seal


def extend_signature(session: Session, key: str, limit: int = _ROWS_AT_ONCE) -> int:
    """Sign up to `limit` further rows that continue what is signed; return their number.

    Nothing is signed in a chain that has no signature of the key, or was changed after it.
    """
    head = lock_head(session)
    before = head.signed or 0
    walk = _Walk(before, _hash_at(session, before))
    walk.check_rows(_page(session, before, limit))
    if walk.faults or not has_signature(session, head, key):
        _not_signed.warn(signed=head.signed)
        return 0
    head.signed, head.signature = walk.seal, signature(key, walk.seal, walk.hash)
    return walk.seal - before


def remove_oldest(session: Session, key: str, before: float, limit: int = _ROWS_AT_ONCE) -> int:
    """Remove up to `limit` of the oldest rows, from before a time in Unix seconds; return their number.

    The last signed row stays, and so do rows whose jobs are not in `total` yet. Nothing is removed from a chain that
    was changed, or whose signature is not the key's.
    """
    head, start = lock_head(session), _start(session)
    last = min(head.counted or 0, (head.seal if head.signed is None else head.signed) - 1)
    old = takewhile(lambda row: row.seal <= last and row.at < before * 1_000_000, _page(session, start.seal, limit))
    walk = _Walk(start.seal, start.hash)
    if not walk.check_rows(old):
        return 0
    if walk.faults or (head.signed is not None and _signature_faults(session, head, start, key)):
        _not_removed.warn(start=start.seal)
        return 0
    session.execute(delete(Audit).where(Audit.seal > start.seal, Audit.seal <= walk.seal), execution_options=UNSEEN)
    removed = walk.seal - start.seal
    start.seal, start.hash = walk.seal, walk.hash
    if head.signed is not None:
        start.signed, start.signature = start.seal, _start_signature(key, start)
    session.add(start)
    return removed


def unsigned(session: Session) -> bool:
    """Return whether a sealed row waits for its signature in a chain that is signed."""
    head = _head(session)
    return head.signed is not None and head.signed < head.seal


def signature(key: str, seal: int, hash_: str) -> str:
    """Return the signature of a seal and its hash."""
    return hmac.digest(key.encode(), f"{seal}:{hash_}".encode(), "sha256").hex()


def _start_signature(key: str, start: AuditHead) -> str:
    return hmac.digest(key.encode(), f"start:{start.seal}:{start.hash}".encode(), "sha256").hex()


def has_signature(session: Session, head: AuditHead, key: str) -> bool:
    """Return whether the signature of the head is the key's, for the hash that the last signed row has now."""
    seal = head.signed or 0
    return hmac.compare_digest(head.signature or "", signature(key, seal, _hash_at(session, seal)))


def _hash_at(session: Session, seal: int) -> str:
    """Return the hash of a sealed row; empty if there is no such row."""
    return (session.scalar(select(Audit.hash).where(Audit.seal == seal)) or "") if seal else GENESIS


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
class AuditVerdict:
    """The result of `verify`."""

    #: The number of rows checked.
    rows: int
    #: The number of older rows, which retention has removed.
    removed: int
    #: The last hash, to be stored elsewhere.
    head: str
    #: The faults in words.
    faults: tuple[str, ...]
    #: The last row that the key has signed; None without a key, and for a signature that is not right.
    signed: int | None = None

    @property
    def seal(self) -> int:
        """Return the last seal, whose hash is `head`."""
        return self.removed + self.rows


def verify(
    session: Session, *, key: str = "", unsealed_after: float = 60.0, anchors: Iterable[tuple[int, str]] = ()
) -> AuditVerdict:
    """Walk the whole chain. Each of `anchors` is a seal and its hash from before, which the chain must still have.

    With the audit key the chain must also have its signature. Anchors of rows that retention has removed say nothing.
    Rows that are removed meanwhile would be missed, unless the session sees one snapshot of the database.
    """
    start = _start(session)
    walk = _Walk(start.seal, start.hash, anchors)
    grown, head = True, _head(session)
    while grown:  # a reader may see what is sealed meanwhile: walk until the head is no further
        grown = walk.check_rows(_rows_after(session, walk.seal))
        head = _head(session)
        grown = grown and head.seal > walk.seal
    unsigned = _signature_faults(session, head, start, key) if key else []
    faults = walk.faults + _tail(walk, head) + unsigned + _find_unsealed(session, unsealed_after)
    signed = head.signed if key and not unsigned else None
    return AuditVerdict(walk.seal - start.seal, start.seal, walk.hash, tuple(faults), signed)


class _Walk:
    """The state of a walk along the chain: how far it has come, and the faults that it found."""

    def __init__(self, seal: int = 0, hash_: str = GENESIS, anchors: Iterable[tuple[int, str]] = ()) -> None:
        self.anchors: dict[int, set[str]] = {}
        for anchored, digest in anchors:
            self.anchors.setdefault(anchored, set()).add(digest)
        self.seal = seal
        self.hash = hash_
        self.faults: list[str] = []
        self._compare_with_anchor()

    def check_rows(self, rows: Iterable[Row[Any]]) -> bool:
        """Check some rows; return False when there were none."""
        before = self.seal
        for row in rows:
            if row.seal != self.seal + 1:
                self.faults.append(f"seal {self.seal + 1} is missing (found {row.seal})")
            if digest(self.hash, row, row.seal) != row.hash:
                self.faults.append(f"row {row.id} (seal {row.seal}) does not match its hash")
            self.seal, self.hash = row.seal, row.hash
            self._compare_with_anchor()
        return self.seal != before

    def _compare_with_anchor(self) -> None:
        if self.anchors.get(self.seal, {self.hash}) != {self.hash}:
            self.faults.append(f"seal {self.seal} does not match the anchor")


def _rows_after(session: Session, after: int) -> Iterator[Row[Any]]:
    while rows := _page(session, after, _ROWS_AT_ONCE):
        yield from rows
        after = rows[-1].seal


def _page(session: Session, after: int, limit: int) -> Sequence[Row[Any]]:
    columns = Audit.__table__.columns
    return session.execute(select(*columns).where(Audit.seal > after).order_by(Audit.seal).limit(limit)).all()


def _head(session: Session) -> AuditHead:
    """Return the head as it is in the database now; that of a chain without rows where there is none."""
    return session.get(AuditHead, HEAD, populate_existing=True) or AuditHead(seal=0, hash=GENESIS)


def _start(session: Session) -> AuditHead:
    """Return the seal and the hash behind which the chain begins; 0 and GENESIS where no row was removed."""
    return session.get(AuditHead, START, populate_existing=True) or AuditHead(id=START, seal=0, hash=GENESIS)


def head_of(session: Session) -> tuple[int, str]:
    """Return the last seal and its hash; 0 and GENESIS for a chain without rows."""
    head = _head(session)
    return head.seal, head.hash


def _tail(walk: _Walk, head: AuditHead) -> list[str]:
    faults = []
    if (head.seal, head.hash) != (walk.seal, walk.hash):
        faults.append(f"the head says {head.seal} rows, the chain ends at {walk.seal}")
    last = max(walk.anchors, default=0)
    if last > walk.seal:
        faults.append(f"the chain is shorter than the anchor ({last})")
    return faults


def _signature_faults(session: Session, head: AuditHead, start: AuditHead, key: str) -> list[str]:
    if head.signed is None:
        return ["the chain is not signed with the audit key"]
    if not has_signature(session, head, key):
        return [f"seal {head.signed} does not match the signature of the audit key"]
    if start.seal and not hmac.compare_digest(start.signature or "", _start_signature(key, start)):
        return [f"the start at seal {start.seal} does not match the signature of the audit key"]
    return []


def _find_unsealed(session: Session, after: float) -> list[str]:
    old = int((now() - after) * 1_000_000)
    unsealed = session.scalars(select(Audit.id).where(Audit.seal.is_(None), Audit.at < old).limit(10)).all()
    return [f"row {row_id} is unsealed for over {after:.0f} s" for row_id in unsealed]
