"""Dropped documents leave the disk, while others write and read."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.workers.vectors.writer import ENTRIES, a_document, a_store, an_entry, go, start, towards
from workers.vectors.lance import LanceVectors

STORE = a_store("vs_erased")
WORD = "okapi4402"
#: Rows that stay in the file beside the one that goes: LanceDB rewrites no file for so few.
BESIDE = 200
DOCUMENTS = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


@pytest.fixture
def vectors(root: Path) -> Iterator[LanceVectors]:
    made = LanceVectors(root)
    yield made
    made.close()


def holders(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.is_file() and WORD.encode() in path.read_bytes()]


def written(vectors: LanceVectors) -> None:
    vectors.write(STORE, [*a_document("vsd_keep.1", BESIDE), an_entry("vsd_gone.1", 0, f"here is {WORD}")])


@pytest.mark.parametrize("tended", [False, True])
def test_dropped_document_stays_on_disk_until_erased(vectors: LanceVectors, root: Path, tended: bool) -> None:
    written(vectors)
    if tended:
        vectors.tend(STORE)

    assert vectors.drop(STORE, ["vsd_gone.1"]) == 1
    assert holders(root)
    vectors.erase(STORE)

    assert holders(root) == []
    assert vectors.counts(STORE) == {"vsd_keep.1": BESIDE}
    assert len(vectors.matching(STORE, "passage", BESIDE + 1)) == BESIDE
    assert len(vectors.nearest(STORE, towards(1), BESIDE + 1)) == BESIDE
    assert vectors.numbers(STORE, "vsd_keep.1") == list(range(BESIDE))


def test_a_whole_file_of_dropped_rows_goes_too(vectors: LanceVectors, root: Path) -> None:
    vectors.write(STORE, a_document("vsd_keep.1"))
    vectors.write(STORE, [an_entry("vsd_gone.1", 0, f"here is {WORD}")])
    vectors.drop(STORE, ["vsd_gone.1"])

    vectors.erase(STORE)

    assert holders(root) == []
    assert list(vectors.counts(STORE)) == ["vsd_keep.1"]


def test_nothing_to_erase_is_no_error(vectors: LanceVectors) -> None:
    vectors.erase(STORE)
    written(vectors)
    vectors.erase(STORE)
    vectors.erase(STORE)

    assert vectors.counts(STORE) == {"vsd_keep.1": BESIDE, "vsd_gone.1": 1}


@pytest.mark.verify
def test_others_may_write_drop_and_read_meanwhile(vectors: LanceVectors, root: Path) -> None:
    written(vectors)
    stop = threading.Event()

    def read() -> int:
        seen = 0
        while not stop.is_set():
            assert vectors.counts(STORE)["vsd_keep.1"] == BESIDE
            assert vectors.nearest(STORE, towards(1), 3)
            seen += 1
        return seen

    writers = [start("", root, STORE, prefix, DOCUMENTS) for prefix in ("vsd_a", "vsd_b")]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for writer in writers:
                go(writer)
            vectors.drop(STORE, ["vsd_gone.1"])
            rounds = 0
            while rounds < 3 or any(writer.poll() is None for writer in writers):
                vectors.erase(STORE)
                rounds += 1
        finally:
            stop.set()
        assert reading.result(60) > 0
    for writer in writers:
        writer.communicate(timeout=60)
    counts = vectors.counts(STORE)

    assert [writer.returncode for writer in writers] == [0, 0]
    assert holders(root) == []
    assert set(counts) == {"vsd_keep.1", *(f"{prefix}{n}" for prefix in ("vsd_a", "vsd_b") for n in range(DOCUMENTS))}
    assert set(counts.values()) == {BESIDE, ENTRIES}
