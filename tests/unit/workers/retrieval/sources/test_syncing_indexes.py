"""Sources of a store that has a second index: both are kept in step, and a new version follows the old one in view."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs.errors import ClaimLost
from jobs.retrieval.tables import VectorStoreFile
from tests.support.ingestion import SMALL, Killed, Works
from tests.support.source_sync import TEXTS, Sync, alive, of_folder, write
from workers.retrieval import verification
from workers.retrieval.ingestion import job as ingestion
from workers.retrieval.sources.base import Fetched
from workers.retrieval.sources.folder import FolderReader

OTHER = {"embedding_dimensions": 32}


def static(size: int) -> dict[str, Any]:
    return {"type": "static", "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": 0}}


OWN, SMALLER = static(150), static(120)


def beside(inline: Works, source: Sync, **fields: Any) -> str:
    """Build a second index."""
    index = str(inline.ok(f"/vector_stores/{source.store}/indexes", json={**OTHER, **fields})["id"])
    inline.drive()
    return index


def switch(inline: Works, source: Sync, index: str, *, allow_missing: bool = False) -> bool:
    """Switch to an index; return False where it lacks files of the other."""
    path = f"/v1/vector_stores/{source.store}/indexes/{index}/switch"
    answer = inline.api.post(path, json={"allow_missing": allow_missing})
    assert answer.status_code == 200 or answer.json()["error"]["code"] == "index_incomplete"
    return bool(answer.status_code == 200)


def handle(inline: Works, job_id: str) -> None:
    """Handle all messages of this job, until it has ended."""
    while messages := [message for message in inline.messages() if message.job_id == job_id]:
        inline.handle(messages[0])


def shown(inline: Works, source: Sync, word: str) -> Counter[str]:
    found = inline.search(source.store, word, limit=50)
    return Counter({one.file_id: 1 for one in found if word in one.text})


def assert_in_step(inline: Works, source: Sync, *indexes: str) -> None:
    """Check that each index has the newest version of each document, whole, and nothing else is anywhere."""
    files = {str(item.file_id) for item in source.items().values()}
    assert files == alive(inline)
    assert {item.previous_id for item in source.items().values()} == {None}
    for index in indexes:
        assert {row.id: row.status for row in inline.rows(index)} == dict.fromkeys(files, "completed")
    inline.purge()
    assert verification.verify(inline.db, inline.vectors, inline.storage).faults == []
    for index in indexes:
        inline.assert_tidy(index)


def test_sync_updates_every_index(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    write(library / "a.txt", "apricot " * 30)
    write(library / "new.txt", "quince quince")
    (library / "b/plum.md").unlink()

    assert source.again()["status"] == "completed"

    assert source.counts() == [3, 1, 1, 1, 1, 0]
    assert_in_step(each, source, source.store, second)
    assert switch(each, source, second)
    assert (source.names("apricot"), source.names("quince")) == ({"a.txt"}, {"new.txt"})
    assert (source.names("apple"), source.names("plum")) == (set(), set())
    write(library / "a.txt", "avocado " * 9)
    assert source.again()["status"] == "completed"
    assert source.counts() == [3, 0, 1, 0, 2, 0]
    assert source.names("avocado") == {"a.txt"}
    assert_in_step(each, source, source.store, second)


def test_index_reports_building_while_sync_adds_files(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_folder(each, library)
    path = f"/vector_stores/{source.store}/indexes/{beside(each, source)}"
    write(library / "a.txt", "apricot " * 30)
    write(library / "new.txt", "quince quince")
    told: list[tuple[str, int]] = []
    fetch = FolderReader.fetch

    def looked(*given: Any) -> Fetched | None:
        index = each.get(path)
        told.append((index["status"], index["missing"]))
        return fetch(*given)

    with monkeypatch.context() as patched:
        patched.setattr(FolderReader, "fetch", looked)
        assert source.again()["status"] == "completed"

    assert ("building", 1) in told
    assert {status for status, _ in told} <= {"ready", "building"}
    assert each.get(path)["status"] == "ready"


def test_a_file_that_failed_in_every_index_makes_none_fail_while_a_sync_reads(
    inline: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_folder(inline, library)
    inline.attach(source.store, inline.upload(b"\x00\x01", "broken.pdf"))
    inline.drive()
    path = f"/vector_stores/{source.store}/indexes/{beside(inline, source)}"
    assert inline.get(path)["status"] == "ready"
    write(library / "a.txt", "apricot " * 30)
    write(library / "new.txt", "quince quince")
    told: list[str] = []
    fetch = FolderReader.fetch

    def looked(*given: Any) -> Fetched | None:
        told.append(inline.get(path)["status"])
        return fetch(*given)

    with monkeypatch.context() as patched:
        patched.setattr(FolderReader, "fetch", looked)
        assert source.again()["status"] == "completed"

    assert "building" in told
    assert "failed" not in told
    assert inline.get(path)["status"] == "ready"


@pytest.mark.parametrize("step", range(7))
@pytest.mark.first(2)
def test_a_switch_amid_a_sync_shows_each_document_once(each: Works, library: Path, step: int) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    write(library / "a.txt", "apple apricot " * 20)
    each.ok(f"{source.path}/{source.id}/sync")

    switched = False
    for n in range(60):
        switched = switched or (n >= step and switch(each, source, second))
        assert shown(each, source, "apple").total() == 1
        if not each.messages():
            break
        each.handle(each.messages()[0])

    assert switched
    assert source.names("apricot") == {"a.txt"}
    assert_in_step(each, source, source.store, second)


@pytest.mark.parametrize("first", ["store", "second"])
def test_old_version_is_replaced_as_index_in_use_gets_new_version(each: Works, library: Path, first: str) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    write(library / "a.txt", "apple apricot " * 20)
    each.ok(f"{source.path}/{source.id}/sync")
    each.drive(until="parse")
    newest = str(source.items()["a.txt"].file_id)
    jobs = {"store": str(each.row(source.store, newest).job_id), "second": str(each.row(second, newest).job_id)}

    handle(each, jobs[first])
    assert shown(each, source, "apple").total() == 1
    assert (newest in shown(each, source, "apple")) == (first == "store")
    switch(each, source, second, allow_missing=True)
    assert shown(each, source, "apple").total() == (first == "second")  # it was let go of with `allow_missing`
    each.drive()

    assert shown(each, source, "apple") == Counter([newest])
    assert_in_step(each, source, source.store, second)


def test_a_source_that_is_deleted_takes_its_files_out_of_every_index(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    second = beside(each, source)

    each.delete(f"{source.path}/{source.id}")
    each.purge()

    assert alive(each) == set()
    assert [*each.rows(source.store), *each.rows(second)] == []
    assert set(TEXTS) & source.items().keys() == set()
    assert verification.verify(each.db, each.vectors, each.storage).faults == []


@pytest.mark.parametrize("asked", [None, SMALLER])
def test_each_index_uses_own_chunking_unless_source_sets_chunking(
    each: Works, library: Path, asked: dict[str, Any] | None
) -> None:
    source = of_folder(each, library, **({"chunking_strategy": asked} if asked else {}))
    second = beside(each, source, chunking_strategy=OWN)
    write(library / "new.txt", "quince quince")

    source.again()

    newest = str(source.items()["new.txt"].file_id)
    assert each.row(source.store, newest).chunking == (asked or SMALL)
    assert each.row(second, newest).chunking == (asked or OWN)


def test_later_files_are_cut_with_the_options_of_the_index(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    second = beside(each, source, chunking_strategy=OWN)
    file = str(source.items()["a.txt"].file_id)
    with each.db.write() as session:
        session.delete(session.get_one(VectorStoreFile, (second, file)))

    each.ok(f"/vector_stores/{source.store}/indexes/{second}/sync")

    assert each.row(second, file).chunking == OWN


def test_a_retry_of_a_sync_that_ended_while_it_was_planned_fills_every_index(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Sync(each, each.store(), type="folder", path=str(library))
    second = beside(each, source)
    for name in TEXTS:
        write(library / name, f"apricot {name} " * 9)
    each.ok(f"{source.path}/{source.id}/sync")
    job = str(source.now()["file_batch_id"])

    def cancelled(*_: object, **__: object) -> None:
        each.ok(f"/vector_stores/{source.store}/file_batches/{job}/cancel")
        raise ClaimLost

    with monkeypatch.context() as patched:
        patched.setattr(ingestion, "_cuts", cancelled)
        each.drive()
    assert each.job(job).state == "cancelled"

    each.ok(f"/jobs/{job}/retry")
    each.drive()

    assert {row.status for row in each.rows(source.store)} == {"completed"}
    assert_in_step(each, source, source.store, second)


@pytest.mark.parametrize("own", [True, False])
def test_sync_fails_if_its_index_was_removed_before_planning(each: Works, library: Path, own: bool) -> None:
    source = of_folder(each, library)
    first, second = source.store, beside(each, source)
    if not own:  # the store's row, which stays
        first, second = second, first
        switch(each, source, first)
    write(library / "new.txt", "quince quince")
    each.ok(f"{source.path}/{source.id}/sync")
    switch(each, source, second)
    each.delete(f"/vector_stores/{source.store}/indexes/{first}")

    each.drive()

    told = source.now()
    assert (told["status"], told["last_error"]["code"]) == ("failed", "index_removed")
    assert source.again()["status"] == "completed"
    assert source.names("quince") == {"new.txt"}
    assert_in_step(each, source, second)


def test_sync_fails_if_index_is_removed_during_fetch_and_next_succeeds(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    write(library / "a.txt", "apple apricot " * 20)
    fetch = FolderReader.fetch

    def removed(*given: Any) -> Fetched | None:
        switch(each, source, second)
        each.delete(f"/vector_stores/{source.store}/indexes/{source.store}")
        return fetch(*given)

    each.ok(f"{source.path}/{source.id}/sync")
    with monkeypatch.context() as patched:
        patched.setattr(FolderReader, "fetch", removed)
        each.drive()

    assert source.now()["last_error"]["code"] == "index_removed"
    assert shown(each, source, "apple").total() == 1
    assert source.again()["status"] == "completed"
    assert source.names("apricot") == {"a.txt"}
    assert_in_step(each, source, second)


def test_searchable_old_version_survives_sync_into_other_index(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    ours = VectorStoreFile.store_id == source.store, VectorStoreFile.id == source.items()["a.txt"].file_id
    failed = {"status": "failed", "error_code": "server_error", "document": None}
    with each.db.write() as session:
        session.execute(update(VectorStoreFile).where(*ours).values(failed))
    write(library / "a.txt", "apple apricot " * 20)
    fetch = FolderReader.fetch

    def switched(*given: Any) -> Fetched | None:
        switch(each, source, second)
        return fetch(*given)

    each.ok(f"{source.path}/{source.id}/sync")
    with monkeypatch.context() as patched:
        patched.setattr(FolderReader, "fetch", switched)
        each.drive(until="parse")
    assert shown(each, source, "apple").total() == 1
    each.drive()

    assert source.names("apricot") == {"a.txt"}
    assert_in_step(each, source, source.store, second)


def test_sync_outcome_comes_from_index_in_use_after_index_removal(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    write(library / "new.txt", "quince quince")
    each.ok(f"{source.path}/{source.id}/sync")
    each.drive(until="parse")
    newest = str(source.items()["new.txt"].file_id)
    handle(each, str(each.row(second, newest).job_id))
    assert switch(each, source, second)

    each.delete(f"/vector_stores/{source.store}/indexes/{source.store}")
    each.drive()

    told = source.now()
    assert (told["status"], told["last_error"]) == ("completed", None)
    assert source.counts() == [4, 1, 0, 0, 3, 0]
    assert source.names("quince") == {"new.txt"}
    assert_in_step(each, source, second)


def test_a_sync_that_was_cancelled_before_the_index_in_use_had_any_of_it_has_failed(
    each: Works, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    write(library / "new.txt", "quince quince")
    each.ok(f"{source.path}/{source.id}/sync")

    def cancelled(*_: object, **__: object) -> None:
        switch(each, source, second)
        each.ok(f"/vector_stores/{source.store}/file_batches/{source.now()['file_batch_id']}/cancel")
        raise ClaimLost

    with monkeypatch.context() as patched:
        patched.setattr(ingestion, "_cuts", cancelled)
        each.drive()

    assert (source.now()["status"], source.now()["last_error"]["code"]) == ("failed", "cancelled")
    assert source.again()["status"] == "completed"
    assert_in_step(each, source, second)


@pytest.mark.verify
def test_planner_death_at_any_point_fills_every_index_once(each: Works, library: Path) -> None:
    source = of_folder(each, library)
    second = beside(each, source)
    for at in range(1, 200, 1 if each.db.sqlite else 3):
        write(library / "a.txt", f"apple apricot {at} " * 9)
        each.ok(f"{source.path}/{source.id}/sync")
        each.reaper.arm(at)
        with suppress(Killed):
            each.drive(until="parse")
        died, each.reaper.armed = not each.reaper.armed, False
        each.handle_worker_death()
        each.drive()

        assert (source.now()["status"], source.counts()) == ("completed", [3, 0, 1, 0, 2, 0])
        assert_in_step(each, source, source.store, second)
        if not died:
            break

    assert at > 8
