"""SQL against the vectors: what differs is told, and mended by the workers."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import StorageUnavailable
from jobs.ledger.tables import Audit
from jobs.retrieval import attachments, documents, indexes
from jobs.retrieval.tables import VectorStore
from tests.support.ingesting import DIMENSIONS, MODEL, ReadOnce, Works, refuses, vector_of, works
from workers.retrieval import verification
from workers.retrieval.ingestion import index
from workers.retrieval.verification import Verification
from workers.runtime.context import LazyVectors
from workers.vectors.base import Store, VectorEntry, Vectors, VectorsUnavailable
from workers.vectors.open_vectors import open_vectors

OTHER = "A volcano is a mountain that opens to molten rock. " * 40
PROSE = "The kiwi is a bird that cannot fly. " * 40


def told(mill: Works) -> list[str]:
    verdict = verification.verify(mill.db, mill.vectors, mill.storage)
    return [line for fault in verdict.faults for line in fault.lines()]


def mend(mill: Works) -> None:
    verification.repair(mill.db, verification.verify(mill.db, mill.vectors, mill.storage))
    mill.drive()
    mill.purge()


def where(mill: Works, store: str) -> Store:
    row = mill.rows(store)
    return Store(store, row[0].project_id if row else "", MODEL, DIMENSIONS)


@pytest.fixture
def filled_store(both: Works) -> tuple[str, str]:
    store, file = both.store(), both.upload(PROSE)
    both.attach(store, file)
    both.drive()
    return store, file


def test_what_was_brought_in_is_as_it_should_be(both: Works, filled_store: tuple[str, str]) -> None:
    verdict = verification.verify(both.db, both.vectors, both.storage)

    assert (verdict.stores, verdict.files, verdict.faults) == (1, 1, [])


def test_a_file_that_lost_entries_is_brought_in_again(both: Works, filled_store: tuple[str, str]) -> None:
    store, file = filled_store
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
    entry = VectorEntry("vsd_gone.3", 0, "Nobody points here.", "0" * 64, vector_of("nobody"))
    mill.vectors.inner.write(where(mill, store), [entry, replace(entry, n=1)])


def test_what_belongs_to_no_file_is_removed(both: Works, filled_store: tuple[str, str]) -> None:
    store, file = filled_store
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


def test_files_in_progress_are_no_fault(both: Works, filled_store: tuple[str, str]) -> None:
    store, file = filled_store
    both.delete(f"/vector_stores/{store}/files/{file}")  # its removal is pending
    other = both.upload(PROSE + "And it is small.")
    both.attach(store, other)
    both.drive(until="index")
    half = VectorEntry(f"{both.row(store, other).version}.2", 0, "half", "1" * 64, vector_of("half"))
    both.vectors.inner.write(where(both, store), [half])

    assert told(both) == []


def stray_of(mill: Works, store: str, file: str) -> None:
    """Write entries of an earlier attempt at a file, which nothing refers to."""
    entry = VectorEntry(f"{mill.row(store, file).version}.0", 0, "half", "1" * 64, vector_of("half"))
    mill.vectors.inner.write(where(mill, store), [entry])


def halfway(mill: Works, store: str, *texts: str) -> tuple[str, list[str]]:
    """Create a batch of two shards, and run the first; return its job and its files."""
    files = [mill.upload(text) for text in (*texts, "1", "2", "3")]
    job = mill.batch(store, *files)
    mill.drive(until="index")
    mill.handle(mill.messages()[0])
    assert [shard.state for shard in mill.shards(job)].count("done") == 1
    return job, files


def test_what_a_file_left_that_failed_is_no_fault_while_its_job_goes_on(
    mill: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of it was written already; the job enqueues its removal when it ends."""
    monkeypatch.setattr(index, "CHUNKS_AT_ONCE", 1)
    mill.engine.fault = refuses("nasty")
    store = mill.store()
    job, (file, *_) = halfway(mill, store, f"{PROSE} {PROSE} nasty")
    assert mill.row(store, file).status == "failed"
    assert any(key.startswith(mill.row(store, file).version) for key in mill.written(store))

    assert told(mill) == []
    mill.drive()
    assert mill.job(job).state == "succeeded"
    assert told(mill) == []
    mill.purge()
    mill.assert_tidy(store)


def test_what_an_attempt_left_is_no_fault_while_its_job_goes_on(mill: Works) -> None:
    store = mill.store()
    _, (file, *_) = halfway(mill, store, PROSE)
    assert mill.row(store, file).status == "completed"
    stray_of(mill, store, file)

    assert told(mill) == []
    mill.drive()
    assert told(mill) == [f"{store}: 1 documents belong to no file"]


def test_what_is_written_of_a_file_that_was_attached_anew_is_no_fault(mill: Works) -> None:
    store = mill.store()
    mill.attach(store, mill.upload(OTHER))
    mill.drive()
    file = mill.upload(PROSE)
    mill.attach(store, file)
    mill.drive(until="index")
    stray_of(mill, store, file)
    mill.attach(store, file, attributes={"n": 2})

    assert told(mill) == []
    mill.drive()
    mill.purge()
    assert told(mill) == []


class Meddling:
    """Vectors after whose first answer of a kind somebody does something."""

    def __init__(self, mill: Works, kind: str, what: Callable[[], object]) -> None:
        self.inner, self.kind, self.what = mill.vectors, kind, what

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.inner, name)
        return self._then(call) if name == self.kind else call

    def _then(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def first(*asked: Any) -> Any:
            found, self.kind = call(*asked), ""
            self.what()
            return found

        return first


@pytest.mark.parametrize("kind", ["stores", "counts", "numbers"])
@pytest.mark.parametrize("what", ["store", "file", "again"])
@pytest.mark.first(3)
def test_concurrent_changes_are_no_fault(mill: Works, kind: str, what: str) -> None:
    store, file, kept = mill.store(), mill.upload(PROSE), mill.store()
    mill.attach(store, file)
    mill.attach(kept, file)
    mill.drive()

    def meddle() -> None:
        if what == "again":
            mill.attach(store, file, chunking_strategy={"type": "auto"})
            mill.drive()
        else:
            mill.delete(f"/vector_stores/{store}" if what == "store" else f"/vector_stores/{store}/files/{file}")
        mill.purge()

    vectors: Any = Meddling(mill, kind, meddle)
    assert verification.verify(mill.db, vectors, mill.storage).faults == []
    assert vectors.kind == ""


def test_a_file_whose_text_is_gone_is_brought_in_again(both: Works, filled_store: tuple[str, str]) -> None:
    store, file = filled_store
    both.storage.delete(documents.path(store, both.row(store, file).version))
    content = f"/v1/vector_stores/{store}/files/{file}/content"
    lost = both.api.get(content)
    assert (lost.status_code, lost.json()["error"]["type"]) == (500, "server_error")

    assert told(both) == [f"{store}: {file} has not the text that it should have"]
    mend(both)

    assert told(both) == []
    assert both.api.get(content).json()["data"][0]["text"] == PROSE.strip()
    both.assert_tidy(store)


def test_a_backup_without_vectors_has_them_again(sqlite: Database, tmp_path: Path, parser: ReadOnce) -> None:
    with (
        closing(open_vectors("", tmp_path / "vectors")) as vectors,
        works(tmp_path, sqlite.url, vectors, parser) as mill,
    ):
        store, file = mill.store(), mill.upload(PROSE)
        mill.attach(store, file)
        mill.drive()
        before = mill.row(store, file).entries

    with closing(open_vectors("", tmp_path / "empty")) as vectors, works(tmp_path, sqlite.url, vectors, parser) as mill:
        assert len(told(mill)) == 1
        mend(mill)

        assert told(mill) == []
        assert sum(vectors.counts(where(mill, store)).values()) == before > 0


def test_a_repair_is_in_the_audit_log(both: Works, filled_store: tuple[str, str]) -> None:
    store, _ = filled_store
    stray(both, store)

    mend(both)

    with both.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == store)).all()
    assert actions.count("vectors.repair") == 1
    assert actions.count("vectors.purge_leftovers") == 1


def test_expired_store_has_no_missing_vectors(mill: Works) -> None:
    store = mill.store(expires_after={"anchor": "last_active_at", "days": 1})
    mill.attach(store, mill.upload(PROSE))
    mill.drive()
    with mill.db.write() as session:
        session.get_one(VectorStore, store).expires_at = 1.0
    with mill.db.write() as session:
        attachments.expire(session, now(), 10)
    row = mill.current(store)
    mill.vectors.inner.drop_store(Store(store, row.project_id, row.model, row.dimensions))

    verdict = verification.verify(mill.db, mill.vectors, mill.storage)

    assert (verdict.stores, verdict.files, verdict.faults) == (1, 0, [])


def lose_its_entries(mill: Works) -> tuple[str, str]:
    """Remove the entries of a file from the vectors; return the store and the file."""
    store, file = mill.store(), mill.upload(PROSE)
    mill.attach(store, file)
    mill.drive()
    mill.vectors.drop(where(mill, store), [str(mill.row(store, file).document)])
    return store, file


@pytest.mark.parametrize("with_its_store", [False, True])
def test_what_was_deleted_since_it_was_found_missing_is_not_brought_in_again(mill: Works, with_its_store: bool) -> None:
    store, file = lose_its_entries(mill)
    verdict = verification.verify(mill.db, mill.vectors, mill.storage)
    assert [row.id for fault in verdict.faults for row in fault.missing] == [file]

    mill.delete(f"/vector_stores/{store}" if with_its_store else f"/files/{file}")
    verification.repair(mill.db, verdict)

    assert mill.messages() == []
    mill.purge()
    assert told(mill) == []


def test_file_ingested_concurrently_is_left_alone_and_checked_again(mill: Works) -> None:
    store, file = lose_its_entries(mill)
    verdict = verification.verify(mill.db, mill.vectors, mill.storage)
    job = mill.attach(store, file, attributes={"n": 2})

    verification.repair(mill.db, verdict)

    assert mill.row(store, file).job_id == job
    mill.drive()
    mend(mill)
    assert told(mill) == []
    assert mill.row(store, file).attributes == {"n": 2}


def test_a_repair_that_comes_after_its_stores_end_does_nothing(mill: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair a store after its end, having read it before."""
    store, file = lose_its_entries(mill)
    verdict = verification.verify(mill.db, mill.vectors, mill.storage)
    recipe = mill.row(store, file).recipe
    monkeypatch.setattr(indexes, "lock", lambda *_: None)

    verification.repair(mill.db, verdict)

    assert mill.messages() == []
    assert mill.row(store, file).recipe == recipe is not None


def test_the_command_tells_what_is_wrong_and_has_it_mended(
    sqlite: Database, tmp_path: Path, parser: ReadOnce, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = open_vectors("", tmp_path / "vectors")
    with works(tmp_path, sqlite.url, vectors, parser) as mill:
        store, file = mill.store(), mill.upload(PROSE)
        mill.attach(store, file)
        mill.drive()
        stray(mill, "vs_stranger")
        row = mill.row(store, file)
        vectors.drop(where(mill, store), [str(row.document)])
        said = [
            (verification.main(mill.context.config, repairs=wanted), capsys.readouterr().out.splitlines())
            for wanted in (False, True)
        ]
        mill.drive()
        mill.purge()
        whole = verification.main(mill.context.config, repairs=False), capsys.readouterr().out
    vectors.close()

    faults = [
        "vs_stranger: there is no such store, but it has vectors",
        f"{store}: {file} has not the {row.entries} entries that it should have",
        "1 stores, 1 files compared: 2 stores with faults",
    ]
    assert said == [
        (verification.DIFFERS, faults),
        (0, [*faults, "the workers will repair it; verify again when they have"]),
    ]
    assert whole == (0, "1 stores, 1 files compared: no stores with faults\n")


def test_a_vector_database_that_is_away_is_told(
    mill: Works, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> Vectors:
        raise VectorsUnavailable("nobody answers")

    monkeypatch.setattr(LazyVectors, "get", away)

    assert verification.main(mill.context.config, repairs=True) == 2
    assert "cannot be reached: nobody answers" in capsys.readouterr().err


def test_a_storage_that_is_away_is_told(
    mill: Works, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> Verification:
        raise StorageUnavailable("The file storage cannot be reached: nobody answers")

    monkeypatch.setattr(verification, "verify", away)

    assert verification.main(mill.context.config, repairs=True) == 2
    assert capsys.readouterr().err == "The file storage cannot be reached: nobody answers\n"
