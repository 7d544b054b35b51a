"""The cache in SQL: what of it can be found, for how long and by whom, and how the rest is removed."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.inference import cache
from jobs.inference.cache import CachedValue, NewEntry
from jobs.inference.tables import CacheEntry, CacheUse
from tests.support.sample_jobs import new_job

LATER = 4_000_000_000.0


def key(name: str) -> bytes:
    return name.encode().ljust(32, b".")


def keep(db: Database, name: str, project: str = "proj_1", epoch: int = 0, **facts: Any) -> bytes:
    values: dict[str, Any] = {"value": b"vector", "tokens": 3, "created_at": now(), "expires_at": LATER} | facts
    with db.write() as session:
        cache.put(session, [NewEntry(key(name), project, epoch, **values)])
    return key(name)


def found(db: Database, *names: str, at: float | None = None) -> dict[bytes, CachedValue]:
    with db.read() as session:
        return cache.find(session, [key(name) for name in names], at or now())


def left(db: Database) -> list[bytes]:
    with db.read() as session:
        return sorted(session.scalars(select(CacheEntry.key)))


def file(db: Database, file_id: str) -> None:
    facts = {"purpose": "batch", "filename": "f", "bytes": 1, "created_at": 1.0}
    with db.write() as session:
        session.add(File(id=file_id, project_id="proj_1", path=f"files/{file_id}", **facts))


def job(db: Database, job_id: str, **files: str) -> None:
    for file_id in files.values():
        file(db, file_id)
    with db.write() as session:
        session.add(new_job(id=job_id, state="succeeded", **files))


def delete_file(db: Database, file_id: str) -> None:
    with db.write() as session:
        session.get_one(File, file_id).deleted_at = 1.0


def test_stored_entry_is_returned_unchanged(db: Database) -> None:
    keep(db, "a", value=b"\0\xff", tokens=7, created_at=1.0)

    assert found(db, "a", "b") == {key("a"): CachedValue(b"\0\xff", 7, 1.0, LATER)}


def test_many_keys_are_looked_for_in_several_statements(db: Database) -> None:
    names = [f"k{n}" for n in range(cache.KEYS_AT_ONCE + 2)]
    keep(db, names[0])
    keep(db, names[-1])

    assert found(db, *names).keys() == {key(names[0]), key(names[-1])}


def test_of_two_that_were_computed_at_once_the_first_stays(db: Database) -> None:
    keep(db, "a", value=b"first")
    keep(db, "a", value=b"second")
    keep(db, "a", value=b"third", job_id="batch_1")

    assert found(db, "a")[key("a")].value == b"first"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"expires_at": 50.0}, {"created_at": 50.0}),
        ({"created_at": 10.0}, {"created_at": 50.0, "expires_at": 90.0}),  # may be 40 s old, and is
        ({"epoch": 0}, {"epoch": 1}),
        ({"job_id": "batch_1"}, {}),  # whose file is deleted
    ],
)
def test_unusable_entry_is_replaced_by_first_new_entry(db: Database, old: dict[str, Any], new: dict[str, Any]) -> None:
    job(db, "batch_1", input_file_id="file-in")
    delete_file(db, "file-in")
    keep(db, "a", value=b"old", **{"created_at": 1.0, **old})
    facts = {"epoch": 0, "created_at": 1.0, "expires_at": LATER, **new}
    first, late = (NewEntry(key("a"), "proj_1", value=value, tokens=3, **facts) for value in (b"new!", b"newer"))

    with db.write() as session:
        cache.put(session, [first, late])

    with db.read() as session:
        assert session.scalars(select(CacheEntry.value)).all() == [b"new!"]
        assert cache.size(session) == 4


def test_entry_from_before_clearing_does_not_replace_newer_entry(db: Database) -> None:
    with db.write() as session:
        cache.clear(session, "proj_1")
    keep(db, "a", value=b"new", epoch=1)
    keep(db, "a", value=b"late", epoch=0)

    assert found(db, "a")[key("a")].value == b"new"


def test_cache_maintenance_skips_locked_rows(db: Database) -> None:
    if db.sqlite:
        pytest.skip("one writes at a time")
    job(db, "batch_1", input_file_id="file-in")
    for name in ("held", "free"):
        keep(db, name, expires_at=1.0, job_id="batch_1")
        keep(db, f"later {name}")
    delete_file(db, "file-in")
    works: list[Callable[[Session], object]] = [
        lambda session: cache.prolong(session, [key("held"), key("free")], 2.0),
        lambda session: cache.evict(session, 1),
        lambda session: cache.remove_expired(session, now(), 1),
        lambda session: cache.remove_deleted(session, 1),
    ]
    with db.write() as session:
        session.execute(select(CacheEntry).where(CacheEntry.key == key("held")).with_for_update())

        for work in works:
            keep(db, "free", expires_at=1.0, job_id="batch_1")
            with db.write() as other:
                work(other)
            prolonged = work is works[0]
            with db.read() as other:
                assert other.scalar(select(CacheEntry.expires_at).where(CacheEntry.key == key("free"))) == (
                    2.0 if prolonged else None
                )
    assert key("held") in left(db)


def test_expired_entries_are_not_found_and_are_removed(db: Database) -> None:
    for n in range(3):
        keep(db, f"old{n}", expires_at=float(n + 1))
    keep(db, "new")

    assert found(db, "old0", "new", at=1.0).keys() == {key("new")}
    with db.write() as session:
        assert cache.remove_expired(session, now(), 2) == 2
    assert left(db) == [key("new"), key("old2")]


def test_a_project_that_clears_its_cache_finds_nothing_of_before_and_no_other_is_touched(db: Database) -> None:
    keep(db, "mine")
    keep(db, "theirs", project="proj_2")

    with db.write() as session:
        assert cache.clear(session, "proj_1") == 1
    keep(db, "late")  # asked for before the clearing, written after it
    keep(db, "new", epoch=1)

    assert found(db, "mine", "theirs", "late", "new").keys() == {key("theirs"), key("new")}
    with db.write() as session:
        assert cache.epochs(session, {"proj_1", "proj_2"}) == {"proj_1": 1, "proj_2": 0}
        assert cache.remove_cleared(session, 200) == {"proj_1": 2}
        assert cache.remove_cleared(session, 200) == {}
    assert left(db) == [key("new"), key("theirs")]


def test_cache_can_be_cleared_repeatedly(db: Database) -> None:
    for epoch in range(3):
        keep(db, "a", epoch=epoch)
        assert found(db, "a")
        with db.write() as session:
            assert cache.clear(session, "proj_1") == 1
        assert not found(db, "a")


@pytest.mark.parametrize("which", ["file-in", "file-out"])
def test_deletion_of_either_file_removes_entries_of_job(db: Database, which: str) -> None:
    job(db, "batch_1", input_file_id="file-in", output_file_id="file-out")
    job(db, "batch_2", input_file_id="file-2")
    keep(db, "a", job_id="batch_1")
    keep(db, "b", job_id="batch_2")
    keep(db, "c")
    assert found(db, "a", "b", "c").keys() == {key("a"), key("b"), key("c")}

    delete_file(db, which)

    assert found(db, "a", "b", "c").keys() == {key("b"), key("c")}
    with db.read() as session:
        assert session.scalars(select(File.id).where(*cache.has_no_entry())).all() == []
    with db.write() as session:
        assert cache.remove_deleted(session, 200) == {(which, "proj_1"): 1}
    assert left(db) == [key("b"), key("c")]
    with db.read() as session:
        assert set(session.scalars(select(File.id).where(*cache.has_no_entry()))) == {"file-in", "file-out"}


def test_entry_of_purged_file_is_not_found(db: Database) -> None:
    job(db, "batch_1", input_file_id="file-in")
    keep(db, "a", job_id="batch_1")
    with db.write() as session:
        session.delete(session.get_one(File, "file-in"))

    assert not found(db, "a")


def test_entry_of_job_without_files_is_found(db: Database) -> None:
    job(db, "resp_1")
    keep(db, "a", job_id="resp_1")

    assert found(db, "a")


def test_no_more_than_the_limit_is_removed_at_once(db: Database) -> None:
    job(db, "batch_1", input_file_id="file-in", output_file_id="file-out")
    for n in range(3):
        keep(db, f"a{n}", job_id="batch_1")
    delete_file(db, "file-in")
    delete_file(db, "file-out")

    with db.write() as session:
        assert sum(cache.remove_deleted(session, 2).values()) == 2
    assert len(left(db)) == 1


def test_eviction_removes_entry_with_earliest_expiry_and_use_prolongs(db: Database) -> None:
    keep(db, "first", expires_at=LATER + 1)
    keep(db, "second", expires_at=LATER + 2)
    keep(db, "third", expires_at=LATER + 3)
    with db.write() as session:
        cache.prolong(session, [key("first")], LATER + 4)

        assert cache.evict(session, 1) == len(b"vector")

    assert left(db) == [key("first"), key("third")]


def test_uses_are_added_up(db: Database) -> None:
    for _ in range(2):
        with db.write() as session:
            cache.count(session, {"embeddings": (3, 1), "answers": (0, 1)})

    with db.read() as session:
        uses = {use.kind: (use.hits, use.misses) for use in session.scalars(select(CacheUse))}
    assert uses == {"embeddings": (6, 2), "answers": (0, 2)}
