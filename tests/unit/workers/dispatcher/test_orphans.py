"""Objects that no row points to are removed at the second look, and nothing else is."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import NotFound, StorageFull, StorageUnavailable
from jobs.evals import runs
from jobs.evals.tables import EvalRun
from jobs.files.tables import File
from jobs.inference import responses
from jobs.inference.tables import StoredResponse
from jobs.ledger import kinds, shards
from jobs.ledger.kinds import Kind, Payload, StorageFolder
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Segment
from jobs.platform.storage import DiskStorage
from jobs.retrieval.tables import VectorStore
from jobs.settings import Settings
from tests.support.dispatcher import new_file
from tests.support.orphan_files import look
from tests.support.sample_jobs import close, finishing, new_job, running, submitted
from workers.dispatcher import orphans
from workers.dispatcher.orphans import Orphans


@pytest.fixture
def looking(db: Database, tmp_path: Path, storage: DiskStorage) -> Orphans:
    return Orphans(Settings(data_dir=tmp_path, database_url=db.url), db, storage)


def _put(storage: DiskStorage, *paths: str) -> None:
    for path in paths:
        storage.put(path, b"x")


def _ended(db: Database, storage: DiskStorage, lines: list[int], **changes: Any) -> str:
    """Create a job that has just ended, with its segments."""
    job_id = finishing(db, lines).id
    close(db, job_id)
    with db.write() as session:
        _put(storage, *session.scalars(select(Segment.path).where(Segment.job_id == job_id)))
        if changes:
            session.execute(update(Job).where(Job.id == job_id).values(**changes))
    return job_id


def test_bytes_that_no_row_points_to_go_at_the_second_look(
    looking: Orphans, db: Database, storage: DiskStorage, caplog: pytest.LogCaptureFixture
) -> None:
    with db.write() as session:
        session.add(new_file("file-kept"))
    _put(storage, "files/file-kept", "files/file-lost")
    unfinished = storage.root / "files" / ".partial-0123"
    unfinished.write_bytes(b"ha")
    os.utime(unfinished, (0, 0))

    look(looking)
    first = storage.list("files")
    _put(storage, "files/file-new")  # its row is on its way
    look(looking)

    assert not unfinished.exists()
    assert first == ["files/file-kept", "files/file-lost"]
    assert storage.list("files") == ["files/file-kept", "files/file-new"]
    assert caplog.messages == ["unfinished_files_removed", "orphans_removed"]


def test_objects_unknown_to_restored_database_are_purged(looking: Orphans, db: Database, storage: DiskStorage) -> None:
    known = submitted(db).id
    with db.write() as session:
        session.add(
            VectorStore(id="vs_kept", project_id="p", name="", model="m", chunking={}, created_at=1, active_at=1)
        )
    _put(storage, f"jobs/{known}/1", "jobs/batch_lost/1", "documents/vs_kept/1", "documents/vs_lost/1", "uploads/u/1")

    look(looking)
    before = len(storage.list(""))
    look(looking)

    assert (before, storage.list("")) == (5, ["documents/vs_kept/1", f"jobs/{known}/1"])


def test_folders_of_old_jobs_that_nothing_tells_of_any_more_go(
    looking: Orphans, db: Database, storage: DiskStorage
) -> None:
    """A crash, or an end before there were shards, leaves them; those of a job that lives, or has rows, stay."""
    with db.write() as session:
        session.add(new_job(id="batch_old", state="failed", failed_at=1.0))
        session.add(new_job(id="batch_alive", state="running"))
    _put(storage, *(f"jobs/batch_{name}/input-1.jsonl" for name in ("old", "alive")))
    full = _ended(db, storage, [1], completed_at=1.0)

    look(looking)
    look(looking)

    assert set(storage.folders("jobs")) == {"batch_alive", full}


@pytest.mark.parametrize(("flat", "inside"), [(True, ""), (False, "/weights.bin")])
def test_folder_that_a_kind_owns_is_looked_at_too(
    looking: Orphans, db: Database, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, flat: bool, inside: str
) -> None:
    row = Kind(
        "training", "Training", "train_", Payload, {}, folders=(StorageFolder("checkpoints", Job.id, flat=flat),)
    )
    monkeypatch.setitem(kinds.TABLE, row.name, row)
    job_id = submitted(db, kind=row.name).id
    _put(storage, f"checkpoints/{job_id}{inside}", f"checkpoints/train_gone{inside}")

    look(looking)
    first = storage.list("checkpoints")
    look(looking)

    assert (len(first), storage.list("checkpoints")) == (2, [f"checkpoints/{job_id}{inside}"])


def test_segments_that_were_never_committed_go_once_their_job_has_ended(
    looking: Orphans, db: Database, storage: DiskStorage
) -> None:
    ended, alive = _ended(db, storage, [2, 2]), running(db, [2]).id
    kept = storage.list(f"jobs/{ended}")
    _put(storage, *(shards.segment_path(job_id, 0, 7, 0) for job_id in (ended, alive)))

    look(looking)
    look(looking)

    assert len(kept) == 2
    assert storage.list("jobs") == sorted([*kept, shards.segment_path(alive, 0, 7, 0)])


@pytest.mark.parametrize("row", [True, False])
def test_remaining_segments_are_purged_with_last_result_file(
    looking: Orphans, db: Database, storage: DiskStorage, row: bool
) -> None:
    """Remove with the last results what could not be removed with the first."""
    job_id = _ended(db, storage, [2], output_file_id="file-out", error_file_id="file-err")
    if row:
        with db.write() as session:
            session.add(new_file("file-err"))

    look(looking)
    look(looking)

    assert len(storage.list(f"jobs/{job_id}")) == row


@pytest.mark.parametrize("row", [True, False])
def test_segments_of_deleted_response_are_purged(
    looking: Orphans, db: Database, storage: DiskStorage, row: bool
) -> None:
    job_id = _ended(db, storage, [1], kind=responses.KIND)
    if row:
        with db.write() as session:
            session.add(StoredResponse(id=job_id, project_id="p", created_at=1.0, expires_at=now() + 60))
    look(looking)
    look(looking)

    assert len(storage.list(f"jobs/{job_id}")) == row


def test_unread_input_copies_and_copies_of_deleted_files_are_purged(
    looking: Orphans, db: Database, storage: DiskStorage
) -> None:
    with db.write() as session:
        session.add(new_file("file-in"))
        for name, file in (("kept", "file-in"), ("lost", "file-gone")):
            facts = {"input_path": f"jobs/{name}/input-2.jsonl", "input_file_id": file, "retry_of": "batch"}
            session.add(new_job(id=name, state=JobState.FAILED, failed_at=now(), **facts))
    _put(storage, *(f"jobs/{name}/input-{epoch}.jsonl" for name in ("kept", "lost") for epoch in (1, 2)))

    look(looking)
    look(looking)

    assert storage.list("jobs") == ["jobs/kept/input-2.jsonl"]


@pytest.mark.parametrize("row", [True, False])
def test_lines_of_a_run_stay_for_its_retry_until_it_is_deleted(
    looking: Orphans, db: Database, storage: DiskStorage, row: bool
) -> None:
    path, facts = "jobs/evalrun_1/input-1.jsonl", {"state": JobState.SUCCEEDED, "completed_at": now()}
    with db.write() as session:
        session.add(new_job(id="evalrun_1", kind=runs.NAME, input_path=path, **facts))
        if row:
            run = {"eval_id": "e", "project_id": "p", "name": "r", "data_source": {}, "bytes": 1, "created_at": 1.0}
            session.add(EvalRun(id="evalrun_1", **run))
    _put(storage, path, "jobs/evalrun_1/items.jsonl")

    look(looking)
    look(looking)

    assert storage.list("jobs") == ([path] if row else [])


def test_a_look_pauses_after_each_page_and_asks_for_no_more_than_that(
    looking: Orphans, db: Database, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "_PAGE", 2)
    read = 0

    def walk(folder: str) -> Iterator[str]:
        nonlocal read
        for n in range(5 if folder == "files" else 0):
            read += 1
            yield f"files/{n}"

    monkeypatch.setattr(storage, "walk", walk)

    assert [read for _ in looking.look()] == [2, 4, 5]


def test_of_more_than_can_be_remembered_the_others_go_later(
    looking: Orphans, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "_SUSPECTS", 2)
    _put(storage, *(f"files/{n}" for n in range(5)))

    left = []
    for _ in range(4):
        look(looking)
        left.append(len(storage.list("files")))

    assert left == [5, 3, 1, 0]


@pytest.mark.parametrize("error", [StorageUnavailable, StorageFull, NotFound])
def test_failed_purge_is_repeated_at_next_scan(
    looking: Orphans,
    storage: DiskStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
) -> None:
    def refuse(_: str) -> None:
        raise error

    _put(storage, "files/file-lost")
    look(looking)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", refuse)
        look(looking)
    assert caplog.messages == ["purge_failed"]

    look(looking)

    assert storage.list("files") == []


def test_object_with_row_added_between_scans_stays(looking: Orphans, db: Database, storage: DiskStorage) -> None:
    _put(storage, "files/file-late")
    look(looking)
    with db.write() as session:
        session.add(new_file("file-late"))

    look(looking)

    assert storage.list("files") == ["files/file-late"]
    with db.read() as session:
        assert session.get_one(File, "file-late").deleted_at is None


def test_object_with_mismatched_name_is_recognised_by_row_path(
    looking: Orphans, db: Database, storage: DiskStorage
) -> None:
    with db.write() as session:
        session.add(new_file("file-moved", path="files/elsewhere"))
    _put(storage, "files/elsewhere")

    look(looking)
    look(looking)

    assert storage.list("files") == ["files/elsewhere"]


def test_a_look_pauses_after_each_removal(looking: Orphans, storage: DiskStorage) -> None:
    _put(storage, *(f"files/{n}" for n in range(5)))
    look(looking)

    assert [len(storage.list("files")) for _ in looking.look()][:7] == [5, 4, 3, 2, 1, 0, 0]


def test_scan_aborts_on_storage_outage_and_next_scan_purges_all(
    looking: Orphans, storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stop after the first failure: each try takes its patience, and there may be a hundred thousand."""

    def refuse(_: str) -> None:
        raise StorageUnavailable

    _put(storage, *(f"files/{n}" for n in range(9)))
    look(looking)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", refuse)
        with pytest.raises(StorageUnavailable):
            look(looking)
    assert caplog.messages == ["purge_failed"] * 3

    look(looking)

    assert storage.list("files") == []
