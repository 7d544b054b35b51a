"""LanceDB keeps indices, versions of other processes, folders and the disk in order. The rest is the contract's."""

import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from jobs.timings import Timings
from tests.unit.workers.vectors.writer import ENTRIES, a_document, a_store, an_entry, digest_of, towards
from workers.vectors import lance
from workers.vectors.base import Store, VectorEntry, Vectors, VectorsUnavailable
from workers.vectors.lance import LanceVectors

DIMENSIONS = 64
STORE = a_store("vs_a")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


@pytest.fixture
def vectors(root: Path) -> Iterator[LanceVectors]:
    opened = LanceVectors(root)
    yield opened
    opened.close()


def random_entries(count: int) -> list[VectorEntry]:
    """Without any structure in them, which is the hardest for an index."""
    made = np.random.default_rng(1).normal(size=(count, DIMENSIONS)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return [VectorEntry(f"vsd_{n // 1000}.1", n, f"text {n}", digest_of(str(n)), row) for n, row in enumerate(made)]


def indexed(vectors: LanceVectors, store: Store) -> set[str]:
    table: Any = vectors._tables.find(store)
    return {column for index in table.list_indices() for column in index.columns}


def test_a_large_store_gets_an_index_that_misses_next_to_nothing(vectors: LanceVectors) -> None:
    store = a_store("vs_large", DIMENSIONS)
    entries = random_entries(lance.INDEXED_FROM + 2000)
    vectors.write(store, entries[: lance.INDEXED_FROM])
    assert indexed(vectors, store) == {"text"}
    vectors.tend(store)
    vectors.write(store, entries[lance.INDEXED_FROM :])  # are not in the index
    matrix = np.stack([entry.vector for entry in entries])

    found = wanted = 0
    for asked in random_entries(50):
        best = np.argsort(-(matrix @ asked.vector))[:10]
        found += len({hit.n for hit in vectors.nearest(store, asked.vector, 10)} & set(best.tolist()))
        wanted += len(best)

    assert indexed(vectors, store) == {"text", "vector", "document", "digest"}
    assert found / wanted >= 0.98
    newest = entries[-1]
    assert vectors.nearest(store, newest.vector, 1)[0].n == newest.n
    assert [hit.n for hit in vectors.nearest(store, newest.vector, 3, ["vsd_0.1"])] < [1000] * 3
    assert list(vectors.find_vectors(store, [newest.digest])) == [newest.digest]
    assert vectors.drop(store, ["vsd_3.1"]) == 1000


def test_a_small_store_is_searched_without_an_index(vectors: LanceVectors) -> None:
    vectors.write(STORE, a_document("vsd_a.1"))

    vectors.tend(STORE)

    assert indexed(vectors, STORE) == {"text"}


def test_cached_commits_of_a_session_are_released_with_it(
    vectors: LanceVectors, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance, "COMMITS", 3)
    sessions: list[Any] = []

    def session(*caches: int) -> Any:
        sessions.append(real(*caches))
        return sessions[-1]

    real = lance.lancedb.Session
    monkeypatch.setattr(lance.lancedb, "Session", session)

    def write(first: int) -> None:
        for n in range(first, first + 10):
            vectors.write(STORE, [an_entry(f"vsd_{n}.1", 0, "a passage")])
            assert vectors.numbers(STORE, f"vsd_{n}.1") == [0]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, (0, 100)))

    assert len(vectors.counts(STORE)) == 20
    assert 20 // 3 <= len(sessions) <= 12  # two threads may find that there is none


def test_missing_index_is_rebuilt(vectors: LanceVectors) -> None:
    """As after a process that died between making the table and its index."""
    vectors.write(STORE, a_document("vsd_a.1"))
    table: Any = vectors._tables.find(STORE)
    table.drop_index("text_idx")
    assert len(vectors.matching(STORE, "passage", 9)) == ENTRIES

    vectors.tend(STORE)

    assert indexed(vectors, STORE) == {"text"}
    assert len(vectors.matching(STORE, "passage", 9)) == ENTRIES


@pytest.mark.parametrize("query", ["中华", "共和国", "cafe", "foo", "bar", "ไทย"])
def test_words_without_separating_spaces_are_found(vectors: LanceVectors, query: str) -> None:
    vectors.write(
        STORE, [an_entry("vsd_a.1", 0, "中华人民共和国 café foo_bar ภาษาไทย"), an_entry("vsd_a.1", 1, "else")]
    )

    assert [hit.n for hit in vectors.matching(STORE, query, 5)] == [0]


def test_small_writes_are_compacted_into_single_file(
    vectors: LanceVectors, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance, "KEEP", timedelta(milliseconds=1))
    for number in range(30):
        vectors.write(STORE, a_document(f"vsd_{number}.1"))
    assert len(files(root, "data")) == 30

    for _ in range(2):
        vectors.tend(STORE)

    assert len(files(root, "data")) == 1
    assert len(files(root, "_versions")) < 5
    assert vectors.counts(STORE) == {f"vsd_{number}.1": ENTRIES for number in range(30)}


def test_tend_retains_versions_for_readers(vectors: LanceVectors, root: Path) -> None:
    for number in range(3):
        vectors.write(STORE, a_document(f"vsd_{number}.1"))

    vectors.tend(STORE)

    assert len(files(root, "data")) == 4


@pytest.mark.verify
def test_a_reader_does_not_notice_that_a_store_is_tended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when the version that it reads is cleaned up meanwhile."""
    monkeypatch.setattr(lance, "KEEP", timedelta(milliseconds=1))
    reader, writer = LanceVectors(root), LanceVectors(root)
    writer.write(STORE, a_document("vsd_first.1"))
    failures: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        try:
            while not over.is_set():
                assert len(reader.nearest(STORE, towards(1), 5, ["vsd_first.1"])) == ENTRIES
                assert len(reader.matching(STORE, "passage", 5, ["vsd_first.1"])) == ENTRIES
                assert reader.counts(STORE)["vsd_first.1"] == ENTRIES
        except BaseException as failure:  # noqa: BLE001 (a thread's failure is the test's)
            failures.append(failure)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(25):
        writer.write(STORE, a_document(f"vsd_{number}.1"))
        writer.tend(STORE)
    over.set()
    for thread in threads:
        thread.join()

    assert failures == []
    reader.close()
    writer.close()


def test_locked_store_is_not_tended(vectors: LanceVectors, root: Path) -> None:
    for number in range(3):
        vectors.write(STORE, a_document(f"vsd_{number}.1"))
    descriptor = os.open(root / "vs_a.lance", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    vectors.tend(STORE)
    assert len(files(root, "data")) == 3
    os.close(descriptor)
    vectors.tend(STORE)

    assert len(files(root, "data")) == 4


@pytest.mark.parametrize("name", ["", "vs_", "vsi_", "vs_a/../b", "../vs_a", "vs_a.b", "a", "vs_a\n", "vs_é"])
def test_no_id_leads_out_of_the_folder(vectors: LanceVectors, name: str) -> None:
    store = a_store(name)

    for attempt in (vectors.drop_store, vectors.tend, vectors.counts):
        with pytest.raises(ValueError, match="not the id of a store"):
            attempt(store)
    with pytest.raises(ValueError, match="not the id of a store"):
        vectors.write(store, a_document("vsd_a.1"))


def test_store_with_other_vector_dimensions_is_refused(vectors: LanceVectors) -> None:
    vectors.write(STORE, a_document("vsd_a.1"))
    other = a_store(STORE.id, 4)

    for one in (vectors, LanceVectors(vectors._root)):
        with pytest.raises(ValueError, match="have 8 dimensions, not 4"):
            one.nearest(other, towards(1, dimensions=4), 5)
        with pytest.raises(ValueError, match="have 8 dimensions, not 4"):
            one.write(other, [an_entry("vsd_b.1", 0, "text", towards(1, dimensions=4))])


@pytest.mark.verify
def test_number_of_open_tables_is_limited(vectors: LanceVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "OPEN_TABLES", 4)
    stores = [a_store(f"vs_{number}") for number in range(40)]
    vectors.write(stores[0], a_document("vsd_a.1"))
    vectors.matching(stores[0], "passage", 1)
    before = psutil.Process().num_fds()

    for store in stores:
        vectors.write(store, a_document("vsd_a.1"))
        vectors.matching(store, "passage", 1)

    assert len(vectors._tables._open) == 4
    assert psutil.Process().num_fds() - before < 10
    assert vectors.counts(stores[20]) == {"vsd_a.1": ENTRIES}


def test_leftovers_of_lost_write_are_listed_and_can_be_dropped_or_replaced(vectors: LanceVectors, root: Path) -> None:
    """Its file came into a folder that another process was dropping."""
    for name in ("vs_a", "vs_b"):
        (root / f"{name}.lance" / "data").mkdir(parents=True)
        (root / f"{name}.lance" / "data" / "lost.lance").write_bytes(b"x")
    assert vectors.stores() == ["vs_a", "vs_b"]
    assert vectors.counts(STORE) == {}

    vectors.write(STORE, a_document("vsd_a.1"))
    vectors.drop_store(a_store("vs_b"))

    assert vectors.counts(STORE) == {"vsd_a.1": ENTRIES}
    assert vectors.stores() == ["vs_a"]


def test_leftovers_of_killed_drop_are_removed_by_next_drop(vectors: LanceVectors, root: Path) -> None:
    vectors.write(STORE, a_document("vsd_a.1"))
    (root / ".dropped-0123" / "data").mkdir(parents=True)

    assert vectors.stores() == ["vs_a"]
    vectors.drop_store(STORE)

    assert list(root.iterdir()) == []


def test_a_write_is_on_the_disk_before_it_returns(
    vectors: LanceVectors, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LanceDB itself syncs nothing."""
    vectors.write(STORE, a_document("vsd_a.1"))
    synced: set[Path] = set()
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    before = files(root, "")
    monkeypatch.setattr(os, "fsync", note)
    vectors.write(STORE, a_document("vsd_b.1"))

    new = files(root, "") - before
    assert {path.parent.name for path in new} == {"data", "_versions", "_transactions"}
    assert new | {path.parent for path in new} <= synced


def test_failed_disk_sync_raises_unavailable_without_retry(
    vectors: LanceVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors.write(STORE, a_document("vsd_a.1"))

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(VectorsUnavailable, match="Input/output error"):
            vectors.write(STORE, a_document("vsd_b.1"))

    assert vectors.counts(STORE) == {"vsd_a.1": ENTRIES, "vsd_b.1": ENTRIES}


@pytest.mark.parametrize("said", ["Commit conflict for version 7", "Not found: data/x.lance"])
def test_lost_commit_race_is_retried_for_limited_time(root: Path, said: str) -> None:
    vectors = LanceVectors(root, replace(Timings(), vectors_retry=0.2))
    tries: list[int] = []

    def lose(times: int) -> int:
        tries.append(times)
        if len(tries) <= times:
            raise RuntimeError(f"lance error: {said}, /usr/src/lance-13.0.0/src/io/commit.rs:653:26")
        return 42

    assert vectors._repeat(STORE, lambda: lose(2)) == 42
    assert len(tries) == 3
    with pytest.raises(VectorsUnavailable, match=r"^The vector store fails: lance error: [^/]*(/x\.lance)?$"):
        vectors._repeat(STORE, lambda: lose(10_000))


def test_other_errors_are_raised_without_retry(vectors: LanceVectors) -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise RuntimeError("lance error: IO: No space left on device (os error 28)")

    with pytest.raises(VectorsUnavailable, match="No space left"):
        vectors._repeat(STORE, fail)
    assert len(tries) == 1


def test_invalid_folder_raises_unavailable_without_its_path(root: Path) -> None:
    root.write_text("a file where the folder should be")
    vectors: Vectors = LanceVectors(root)

    for attempt in (vectors.check, lambda: vectors.write(STORE, a_document("vsd_a.1"))):
        with pytest.raises(VectorsUnavailable) as raised:
            attempt()
        assert str(root.parent) not in str(raised.value)


def files(root: Path, part: str) -> set[Path]:
    """Of the store's table."""
    return {path for path in (root / "vs_a.lance" / part).rglob("*") if path.is_file()}
