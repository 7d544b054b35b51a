"""The audit chain: ways to tamper with it, all of them found where it is signed; what is not sealed in time, too."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from jobs.db.engine import Database
from jobs.ledger import audit, totals
from jobs.ledger.audit import AuditVerdict
from jobs.ledger.tables import Audit, AuditHead
from tests.support.sample_jobs import rolled_back

pytestmark = pytest.mark.dialects

ROWS = 8
KEY = "k" * 43


@pytest.fixture
def chain(db: Database) -> Database:
    """Eight sealed rows."""
    with db.write() as session:
        for n in range(ROWS):
            audit.record(session, actor="key:a", action="file.delete", target=f"file-{n}", details={"n": n, "ü": [1.5]})
    with db.write() as session:
        assert audit.seal(session, 5) == 5
    with db.write() as session:
        assert audit.seal(session) == 3
    return db


@pytest.fixture
def signed(chain: Database) -> Database:
    """Eight sealed rows, which are signed."""
    with chain.write() as session:
        audit.sign(session, KEY)
    return chain


def verdict(
    db: Database, anchor: tuple[int, str] | None = None, unsealed_after: float = 60.0, key: str = ""
) -> AuditVerdict:
    with db.read() as session:
        return audit.verify(session, key=key, anchors=[anchor] if anchor else [], unsealed_after=unsealed_after)


def maintain(db: Database, key: str = KEY) -> None:
    """Do what the leading dispatcher does."""
    with db.write() as session:
        audit.seal(session)
    with db.write() as session:
        audit.extend_signature(session, key)


def add_row(db: Database) -> None:
    with db.write() as session:
        audit.record(session, actor="key:a", action="x", target="y")


def row(session: Session, seal: int) -> Audit:
    return session.scalars(select(Audit).where(Audit.seal == seal)).one()


def reseal(session: Session, last: int) -> None:
    """Make the chain consistent again, as an attacker with full write access would."""
    previous = audit.GENESIS
    for seal in range(1, last + 1):
        entry = row(session, seal)
        previous = entry.hash = audit.digest(previous, entry, seal)
    session.execute(update(AuditHead).values(seal=last, hash=previous))


def edit(session: Session) -> None:
    session.execute(update(Audit).where(Audit.seal == 3).values(actor="key:b"))


def edit_and_mend(session: Session) -> None:
    """Edit a row and its hash, so that they agree; its successor does not."""
    session.execute(update(Audit).where(Audit.seal == 3).values(actor="key:b"))
    entry = row(session, 3)
    entry.hash = audit.digest(row(session, 2).hash or "", entry, 3)


def remove(session: Session) -> None:
    session.execute(delete(Audit).where(Audit.seal == 3))


def swap(session: Session) -> None:
    first, second = row(session, 3).id, row(session, 4).id
    for row_id, seal in ((first, 99), (second, 3), (first, 4)):
        session.execute(update(Audit).where(Audit.id == row_id).values(seal=seal))


def insert_one(session: Session) -> None:
    extra = {"at": 1, "actor": "key:a", "action": "x", "target": "y", "seal": ROWS + 1, "hash": "0" * 64}
    session.execute(insert(Audit).values(extra))


def cut_tail(session: Session) -> None:
    session.execute(delete(Audit).where(Audit.seal > ROWS - 2))
    last = row(session, ROWS - 2)
    session.execute(update(AuditHead).values(seal=ROWS - 2, hash=last.hash))


def rewrite(session: Session) -> None:
    session.execute(update(Audit).values(actor="nobody"))
    reseal(session, ROWS)


def remove_all(session: Session) -> None:
    session.execute(delete(Audit))
    session.execute(delete(AuditHead))


def rewrite_unsigned(session: Session) -> None:
    """Rewrite all, and remove the signature, as if there had been no key."""
    rewrite(session)
    session.execute(update(AuditHead).values(signed=None, signature=None))


def unseal(session: Session) -> None:
    """Rewrite all, and leave the sealing to the dispatcher."""
    session.execute(update(Audit).values(actor="nobody", seal=None, hash=None))
    session.execute(update(AuditHead).values(seal=0, hash=audit.GENESIS))


def cut_and_move_back(session: Session) -> None:
    """Cut off the tail, with a signature that covers as much as is left."""
    cut_tail(session)
    session.execute(update(AuditHead).values(signed=ROWS - 2))


SILENT = [edit, edit_and_mend, remove, swap, cut_tail, rewrite]
TAMPERS = [*SILENT, insert_one]  # the last keeps further rows from being sealed


def test_an_untouched_chain_is_whole(chain: Database) -> None:
    found = verdict(chain)

    assert (found.rows, found.faults) == (ROWS, ())
    assert len(found.head) == 64


def test_an_empty_log_is_whole(db: Database) -> None:
    assert verdict(db) == AuditVerdict(0, 0, audit.GENESIS, ())


@pytest.mark.parametrize("tamper", [edit, edit_and_mend, remove, swap, insert_one])
def test_tampering_inside_the_chain_is_found(chain: Database, tamper: Callable[[Session], None]) -> None:
    with chain.write() as session:
        tamper(session)

    assert verdict(chain).faults != ()


@pytest.mark.parametrize("tamper", TAMPERS)
def test_tampering_of_every_kind_is_found_against_an_anchor(chain: Database, tamper: Callable[[Session], None]) -> None:
    before = verdict(chain)
    with chain.write() as session:
        tamper(session)

    assert verdict(chain, anchor=(before.rows, before.head)).faults != ()


@pytest.mark.parametrize("tamper", [*SILENT, remove_all, rewrite_unsigned, unseal, cut_and_move_back])
def test_tampering_of_every_kind_is_found_in_a_signed_chain_and_never_signed_later(
    signed: Database, tamper: Callable[[Session], None]
) -> None:
    with signed.write() as session:
        tamper(session)

    found = verdict(signed, key=KEY).faults
    for _ in range(2):
        add_row(signed)
        maintain(signed)

    assert found != ()
    assert verdict(signed, key=KEY).faults != ()


def test_a_signed_chain_grows_also_where_a_host_without_the_key_seals(signed: Database) -> None:
    seen = [verdict(signed, key=KEY)]
    for key in ("", "another key", KEY):
        add_row(signed)
        maintain(signed, key)
        seen.append(verdict(signed, key=KEY))

    assert [one.faults for one in seen] == [()] * 4
    assert [(one.rows, one.signed) for one in seen] == [(8, 8), (9, 8), (10, 8), (11, 11)]
    with signed.read() as session:
        assert not audit.unsigned(session)


def test_a_signature_moves_on_a_page_at_a_time_and_over_no_row_that_was_changed(signed: Database) -> None:
    for _ in range(6):
        add_row(signed)
    with signed.write() as session:
        audit.seal(session)
        session.execute(update(Audit).where(Audit.seal == ROWS + 5).values(actor="nobody"))
    moved = []
    for _ in range(3):
        with signed.write() as session:
            moved.append(audit.extend_signature(session, KEY, limit=2))

    assert moved == [2, 2, 0]
    with signed.read() as session:
        assert audit.unsigned(session)


def test_rows_from_before_the_key_stay_valid_and_a_chain_without_its_signature_does_not(chain: Database) -> None:
    unsigned = verdict(chain, key=KEY)
    maintain(chain)
    with chain.write() as session:
        audit.sign(session, KEY)

    assert unsigned.faults == ("the chain is not signed with the audit key",)
    assert (verdict(chain, key=KEY).signed, verdict(chain).signed) == (ROWS, None)
    assert verdict(chain, key=KEY).faults == ()
    assert verdict(chain, key="another").faults == (f"seal {ROWS} does not match the signature of the audit key",)


@pytest.mark.parametrize(
    "column", ["at", "action", "target", "project_id", "source", "destination", "request_id", "details"]
)
def test_every_column_is_part_of_the_hash(chain: Database, column: str) -> None:
    value: object = {"details": {"n": 0}, "at": 7}.get(column, "changed")
    with chain.write() as session:
        session.execute(update(Audit).where(Audit.seal == 2).values({column: value}))

    assert "does not match its hash" in verdict(chain).faults[0]


def test_an_anchor_of_an_untouched_chain_holds_while_it_grows(chain: Database) -> None:
    before = verdict(chain)
    with chain.write() as session:
        audit.record(session, actor="key:a", action="x", target="y")
    with chain.write() as session:
        audit.seal(session)

    assert verdict(chain, anchor=(before.rows, before.head)).faults == ()


def test_a_head_that_says_more_than_the_chain_holds_is_found(chain: Database) -> None:
    with chain.write() as session:
        session.execute(update(AuditHead).values(seal=ROWS + 1))

    assert verdict(chain).faults == (f"the head says {ROWS + 1} rows, the chain ends at {ROWS}",)


def test_rows_left_unsealed_are_found_after_a_while(chain: Database) -> None:
    with chain.write() as session:
        audit.record(session, actor="key:a", action="x", target="y")

    assert verdict(chain).faults == ()
    assert "unsealed" in verdict(chain, unsealed_after=-1.0).faults[0]


def test_sealing_says_whether_something_waits_for_it(chain: Database) -> None:
    with chain.read() as session:
        before = audit.unsealed(session)
    with chain.write() as session:
        audit.record(session, actor="key:a", action="x", target="y")
        after = audit.unsealed(session)

    assert (before, after) == (False, True)


@pytest.mark.postgres
def test_a_chain_that_grows_while_it_is_walked_is_no_fault(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL each statement sees what is committed by then, so the head may be ahead of the rows just read."""
    with postgres.write() as session:
        for n in range(3):
            audit.record(session, actor="a", action="x", target=str(n))
        audit.seal(session)
    walked = audit._rows_after

    def and_grow(session: Session, after: int):  # type: ignore[no-untyped-def]
        yield from walked(session, after)
        if after == 0:
            with postgres.write() as other:
                audit.record(other, actor="a", action="x", target="late")
                audit.seal(other)

    monkeypatch.setattr(audit, "_rows_after", and_grow)

    found = verdict(postgres)

    assert (found.rows, found.faults) == (4, ())


@pytest.mark.postgres
def test_two_sealers_at_once_seal_each_row_once(postgres: Database) -> None:
    with postgres.write() as session:
        for n in range(6):
            audit.record(session, actor="a", action="x", target=str(n))

    start = threading.Barrier(2)

    def seal(_: int) -> int:
        start.wait()
        with postgres.write() as session:
            return audit.seal(session, 3)

    with ThreadPoolExecutor(2) as pool:
        sealed = list(pool.map(seal, range(2)))

    assert sealed == [3, 3]
    assert verdict(postgres).rows == 6
    assert verdict(postgres).faults == ()


# ── rows that retention removes ──

FUTURE = 4_000_000_000.0


def remove_rows(db: Database, limit: int = 5, *, key: str = KEY, before: float = FUTURE) -> int:
    """Remove rows as retention does, after all sealed rows were looked at for the totals."""
    with db.write() as session:
        totals.count(session)
        return audit.remove_oldest(session, key, before, limit)


def test_chain_remains_valid_after_removal_of_oldest_rows(signed: Database) -> None:
    with signed.read() as session:
        anchors = {seal: (seal, row(session, seal).hash or "") for seal in (2, 5, 7)}

    assert remove_rows(signed, 3) == 3
    assert remove_rows(signed, 2) == 2

    assert verdict(signed).removed == 5
    found = verdict(signed, key=KEY)
    assert (found.rows, found.removed, found.seal, found.signed, found.faults) == (3, 5, ROWS, ROWS, ())
    for anchor in anchors.values():
        assert verdict(signed, anchor=anchor, key=KEY).faults == (), "of removed rows they say nothing"
    for seal in (5, 7):
        assert verdict(signed, anchor=(seal, "0" * 64)).faults != (), "that of the last removed row still counts"
    add_row(signed)
    maintain(signed)
    assert verdict(signed, key=KEY).faults == ()


def test_the_signed_end_stays_and_so_do_new_rows(signed: Database) -> None:
    add_row(signed)
    maintain(signed)

    assert remove_rows(signed, before=1.0) == 0
    assert remove_rows(signed, 100) == ROWS
    assert remove_rows(signed, 100) == 0

    found = verdict(signed, key=KEY)
    assert (found.rows, found.removed, found.faults) == (1, ROWS, ())


def test_rows_that_are_not_counted_stay(signed: Database) -> None:
    with signed.write() as session:
        totals.count(session, 2)
    with signed.write() as session:
        assert audit.remove_oldest(session, KEY, FUTURE, 100) == 2
    assert verdict(signed, key=KEY).faults == ()


def test_a_removal_that_is_rolled_back_leaves_the_chain_as_it_was(signed: Database) -> None:
    with rolled_back(signed) as session:
        totals.count(session)
        assert audit.remove_oldest(session, KEY, FUTURE) > 0

    found = verdict(signed, key=KEY)
    assert (found.rows, found.removed, found.faults) == (ROWS, 0, ())


def test_unsigned_chain_remains_valid_after_removal_of_oldest_rows(chain: Database) -> None:
    assert remove_rows(chain, 3, key="") == 3
    assert verdict(chain).faults == ()

    with chain.write() as session:
        audit.sign(session, KEY)
    assert verdict(chain, key=KEY).faults == (), "who signs it as it is signs its start"


@pytest.mark.parametrize("key", ["", "z" * 43])
def test_rows_are_not_removed_without_valid_signing_key(signed: Database, key: str) -> None:
    assert remove_rows(signed, key=key) == 0
    assert verdict(signed, key=KEY).rows == ROWS


def test_a_changed_row_is_not_removed_and_stays_visible(signed: Database) -> None:
    with signed.write() as session:
        edit(session)

    assert remove_rows(signed) == 0
    assert verdict(signed, key=KEY).faults != ()


def edit_one_left(session: Session) -> None:
    session.execute(update(Audit).where(Audit.seal == 5).values(actor="key:b"))


def start_deleted(session: Session) -> None:
    session.execute(delete(AuditHead).where(AuditHead.id == audit.START))


def start_moved_on(session: Session) -> None:
    """Remove more rows, and let the chain begin behind them."""
    last = row(session, 6)
    session.execute(delete(Audit).where(Audit.seal <= 6))
    session.execute(update(AuditHead).where(AuditHead.id == audit.START).values(seal=6, hash=last.hash))


def start_signed_by_the_head(session: Session) -> None:
    """Use the signature of the head for a start at the same row."""
    head = session.get_one(AuditHead, audit.HEAD)
    session.execute(delete(Audit).where(Audit.seal <= ROWS))
    copied = {"seal": head.seal, "hash": head.hash, "signed": head.seal, "signature": head.signature}
    session.execute(update(AuditHead).where(AuditHead.id == audit.START).values(copied))


def start_rewritten(session: Session) -> None:
    """Rewrite what is left, from a start of one's own."""
    session.execute(update(AuditHead).where(AuditHead.id == audit.START).values(hash="1" * 64))
    previous = "1" * 64
    for seal in range(4, ROWS + 1):
        entry = row(session, seal)
        previous = entry.hash = audit.digest(previous, entry, seal)
    session.execute(update(AuditHead).where(AuditHead.id == audit.HEAD).values(hash=previous))


@pytest.mark.parametrize(
    "tamper", [edit_one_left, start_deleted, start_moved_on, start_signed_by_the_head, start_rewritten]
)
def test_a_start_that_retention_did_not_write_is_found(signed: Database, tamper: Callable[[Session], None]) -> None:
    assert remove_rows(signed, 3) == 3

    with signed.write() as session:
        tamper(session)

    assert verdict(signed, key=KEY).faults != ()


def test_an_earlier_start_is_found(signed: Database) -> None:
    remove_rows(signed, 2)
    with signed.read() as session:
        earlier = session.get_one(AuditHead, audit.START)
        facts = {"seal": earlier.seal, "hash": earlier.hash, "signed": earlier.signed, "signature": earlier.signature}
    remove_rows(signed, 2)

    with signed.write() as session:
        session.execute(update(AuditHead).where(AuditHead.id == audit.START).values(facts))

    assert verdict(signed, key=KEY).faults != ()
