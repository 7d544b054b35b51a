"""SQL against the vectors: what differs is told, and mended by the workers."""

from dataclasses import replace

import pytest
from sqlalchemy import select

from jobs.models import Audit
from tests.support.ingesting import DIMENSIONS, MODEL, Works, vector_of
from workers import verifying
from workers.vectors.port import Entry, Store

PROSE = "The kiwi is a bird that cannot fly. " * 40


def told(mill: Works) -> list[str]:
    verdict = verifying.verify(mill.db, mill.vectors)
    return [line for fault in verdict.faults for line in fault.lines()]


def mend(mill: Works) -> None:
    verifying.repair(mill.db, verifying.verify(mill.db, mill.vectors))
    mill.drive()
    mill.purge()


def where(mill: Works, store: str) -> Store:
    row = mill.rows(store)
    return Store(store, row[0].project_id if row else "", MODEL, DIMENSIONS)


@pytest.fixture
def shelf(both: Works) -> tuple[str, str]:
    store, file = both.store(), both.upload(PROSE)
    both.attach(store, file)
    both.drive()
    return store, file


def test_what_was_brought_in_is_as_it_should_be(both: Works, shelf: tuple[str, str]) -> None:
    verdict = verifying.verify(both.db, both.vectors)

    assert (verdict.stores, verdict.files, verdict.faults) == (1, 1, [])


def test_a_file_that_lost_entries_is_brought_in_again(both: Works, shelf: tuple[str, str]) -> None:
    store, file = shelf
    before = both.row(store, file)
    assert before.document
    both.vectors.drop(where(both, store), [before.document])

    assert told(both) == [f"{store}: {file} has not the {before.entries} entries that it should have"]
    mend(both)

    after = both.row(store, file)
    assert (after.status, after.entries) == ("completed", before.entries)
    assert after.document != before.document
    assert told(both) == []
    assert both.search(store, "a bird")[0].file_id == file
    both.assert_tidy(store)


def stray(mill: Works, store: str) -> None:
    entry = Entry("vsd_gone.3", 0, "Nobody points here.", "0" * 64, vector_of("nobody"))
    mill.vectors.inner.write(where(mill, store), [entry, replace(entry, n=1)])


def test_what_belongs_to_no_file_is_removed(both: Works, shelf: tuple[str, str]) -> None:
    store, file = shelf
    stray(both, store)

    assert told(both) == [f"{store}: 1 documents belong to no file"]
    mend(both)

    assert told(both) == []
    assert both.row(store, file).status == "completed"
    both.assert_tidy(store)


def test_a_store_that_nobody_knows_is_removed(both: Works) -> None:
    stray(both, "vs_stranger")

    assert told(both) == ["vs_stranger: there is no such store, but it has vectors"]
    mend(both)

    assert told(both) == []
    assert both.vectors.stores() == []


def test_what_is_on_its_way_is_no_fault(both: Works, shelf: tuple[str, str]) -> None:
    store, file = shelf
    both.delete(f"/vector_stores/{store}/files/{file}")  # its removal is owed
    other = both.upload(PROSE + "And it is small.")
    both.attach(store, other)
    both.drive(until="index")
    half = Entry(f"{both.row(store, other).version}.2", 0, "half", "1" * 64, vector_of("half"))
    both.vectors.inner.write(where(both, store), [half])

    assert told(both) == []


def test_a_repair_is_in_the_audit_log(both: Works, shelf: tuple[str, str]) -> None:
    store, _ = shelf
    stray(both, store)

    mend(both)

    with both.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == store)).all()
    assert actions.count("vectors.repair") == 1
    assert actions.count("vectors.purge_leftovers") == 1
