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
from tests.support.ingestion import DIMENSIONS, MODEL, ReadOnce, Works, refuses, vector_of, works
from workers.retrieval import verification
from workers.retrieval.ingestion import index
from workers.retrieval.verification import Verification
from workers.runtime.context import LazyVectors
from workers.vectors.base import Store, VectorEntry, Vectors, VectorsUnavailable
from workers.vectors.open_vectors import open_vectors

OTHER = "A volcano is a mountain that opens to molten rock. " * 40
PROSE = "The kiwi is a bird that cannot fly. " * 40


def told(inline: Works) -> list[str]:
    verdict = verification.verify(inline.db, inline.vectors, inline.storage)
    return [line for fault in verdict.faults for line in fault.lines()]


def mend(inline: Works) -> None:
    verification.repair(inline.db, verification.verify(inline.db, inline.vectors, inline.storage))
    inline.drive()
    inline.purge()


def where(inline: Works, store: str) -> Store:
    row = inline.rows(store)
    return Store(store, row[0].project_id if row else "", MODEL, DIMENSIONS)


@pytest.fixture
def filled_store(both: Works) -> tuple[str, str]:
    store, file = both.store(), both.upload(PROSE)
    both.attach(store, file)
    both.drive()
    return store, file


def test_ingested_store_has_no_faults(both: Works, filled_store: tuple[str, str]) -> None:
    verdict = verification.verify(both.db, both.vectors, both.storage)

    assert (verdict.stores, verdict.files, verdict.faults) == (1, 1, [])


def test_file_with_lost_entries_is_reingested(both: Works, filled_store: tuple[str, str]) -> None:
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


def stray(inline: Works, store: str) -> None:
    entry = VectorEntry("vsd_gone.3", 0, "Nobody points here.", "0" * 64, vector_of("nobody"))
    inline.vectors.inner.write(where(inline, store), [entry, replace(entry, n=1)])


def test_orphaned_document_is_removed(both: Works, filled_store: tuple[str, str]) -> None:
    store, file = filled_store
    stray(both, store)

    assert told(both) == [f"{store}: 1 documents belong to no file"]
    mend(both)

    assert told(both) == []
    assert both.row(store, file).status == "completed"
    both.assert_tidy(store)


def test_vectors_of_unknown_store_are_removed(both: Works) -> None:
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


def stray_of(inline: Works, store: str, file: str) -> None:
    """Write entries of an earlier attempt at a file, which nothing refers to."""
    entry = VectorEntry(f"{inline.row(store, file).version}.0", 0, "half", "1" * 64, vector_of("half"))
    inline.vectors.inner.write(where(inline, store), [entry])


def halfway(inline: Works, store: str, *texts: str) -> tuple[str, list[str]]:
    """Create a batch of two shards, and run the first; return its job and its files."""
    files = [inline.upload(text) for text in (*texts, "1", "2", "3")]
    job = inline.batch(store, *files)
    inline.drive(until="index")
    inline.handle(inline.messages()[0])
    assert [shard.state for shard in inline.shards(job)].count("done") == 1
    return job, files


def test_leftovers_of_failed_file_are_no_fault_while_job_runs(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of it was written already; the job enqueues its removal when it ends."""
    monkeypatch.setattr(index, "CHUNKS_AT_ONCE", 1)
    inline.engine.fault = refuses("nasty")
    store = inline.store()
    job, (file, *_) = halfway(inline, store, f"{PROSE} {PROSE} nasty")
    assert inline.row(store, file).status == "failed"
    assert any(key.startswith(inline.row(store, file).version) for key in inline.written(store))

    assert told(inline) == []
    inline.drive()
    assert inline.job(job).state == "succeeded"
    assert told(inline) == []
    inline.purge()
    inline.assert_tidy(store)


def test_leftovers_of_attempt_are_no_fault_while_job_runs(inline: Works) -> None:
    store = inline.store()
    _, (file, *_) = halfway(inline, store, PROSE)
    assert inline.row(store, file).status == "completed"
    stray_of(inline, store, file)

    assert told(inline) == []
    inline.drive()
    assert told(inline) == [f"{store}: 1 documents belong to no file"]


def test_leftovers_of_reattached_file_are_no_fault(inline: Works) -> None:
    store = inline.store()
    inline.attach(store, inline.upload(OTHER))
    inline.drive()
    file = inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive(until="index")
    stray_of(inline, store, file)
    inline.attach(store, file, attributes={"n": 2})

    assert told(inline) == []
    inline.drive()
    inline.purge()
    assert told(inline) == []


class Meddling:
    """Vectors after whose first answer of a kind somebody does something."""

    def __init__(self, inline: Works, kind: str, what: Callable[[], object]) -> None:
        self.inner, self.kind, self.what = inline.vectors, kind, what

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
def test_concurrent_changes_are_no_fault(inline: Works, kind: str, what: str) -> None:
    store, file, kept = inline.store(), inline.upload(PROSE), inline.store()
    inline.attach(store, file)
    inline.attach(kept, file)
    inline.drive()

    def meddle() -> None:
        if what == "again":
            inline.attach(store, file, chunking_strategy={"type": "auto"})
            inline.drive()
        else:
            inline.delete(f"/vector_stores/{store}" if what == "store" else f"/vector_stores/{store}/files/{file}")
        inline.purge()

    vectors: Any = Meddling(inline, kind, meddle)
    assert verification.verify(inline.db, vectors, inline.storage).faults == []
    assert vectors.kind == ""


def test_file_with_lost_text_is_reingested(both: Works, filled_store: tuple[str, str]) -> None:
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


def test_vectors_missing_from_backup_are_restored(sqlite: Database, tmp_path: Path, parser: ReadOnce) -> None:
    with (
        closing(open_vectors("", tmp_path / "vectors")) as vectors,
        works(tmp_path, sqlite.url, vectors, parser) as inline,
    ):
        store, file = inline.store(), inline.upload(PROSE)
        inline.attach(store, file)
        inline.drive()
        before = inline.row(store, file).entries

    with (
        closing(open_vectors("", tmp_path / "empty")) as vectors,
        works(tmp_path, sqlite.url, vectors, parser) as inline,
    ):
        assert len(told(inline)) == 1
        mend(inline)

        assert told(inline) == []
        assert sum(vectors.counts(where(inline, store)).values()) == before > 0


def test_a_repair_is_in_the_audit_log(both: Works, filled_store: tuple[str, str]) -> None:
    store, _ = filled_store
    stray(both, store)

    mend(both)

    with both.db.read() as session:
        actions = session.scalars(select(Audit.action).where(Audit.target == store)).all()
    assert actions.count("vectors.repair") == 1
    assert actions.count("vectors.purge_leftovers") == 1


def test_expired_store_has_no_missing_vectors(inline: Works) -> None:
    store = inline.store(expires_after={"anchor": "last_active_at", "days": 1})
    inline.attach(store, inline.upload(PROSE))
    inline.drive()
    with inline.db.write() as session:
        session.get_one(VectorStore, store).expires_at = 1.0
    with inline.db.write() as session:
        attachments.expire(session, now(), 10)
    row = inline.current(store)
    inline.vectors.inner.drop_store(Store(store, row.project_id, row.model, row.dimensions))

    verdict = verification.verify(inline.db, inline.vectors, inline.storage)

    assert (verdict.stores, verdict.files, verdict.faults) == (1, 0, [])


def lose_its_entries(inline: Works) -> tuple[str, str]:
    """Remove the entries of a file from the vectors; return the store and the file."""
    store, file = inline.store(), inline.upload(PROSE)
    inline.attach(store, file)
    inline.drive()
    inline.vectors.drop(where(inline, store), [str(inline.row(store, file).document)])
    return store, file


@pytest.mark.parametrize("with_its_store", [False, True])
def test_file_deleted_after_verification_is_not_reingested(inline: Works, with_its_store: bool) -> None:
    store, file = lose_its_entries(inline)
    verdict = verification.verify(inline.db, inline.vectors, inline.storage)
    assert [row.id for fault in verdict.faults for row in fault.missing] == [file]

    inline.delete(f"/vector_stores/{store}" if with_its_store else f"/files/{file}")
    verification.repair(inline.db, verdict)

    assert inline.messages() == []
    inline.purge()
    assert told(inline) == []


def test_repair_skips_file_with_newer_ingestion(inline: Works) -> None:
    store, file = lose_its_entries(inline)
    verdict = verification.verify(inline.db, inline.vectors, inline.storage)
    job = inline.attach(store, file, attributes={"n": 2})

    verification.repair(inline.db, verdict)

    assert inline.row(store, file).job_id == job
    inline.drive()
    mend(inline)
    assert told(inline) == []
    assert inline.row(store, file).attributes == {"n": 2}


def test_a_repair_that_comes_after_its_stores_end_does_nothing(inline: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair a store after its end, having read it before."""
    store, file = lose_its_entries(inline)
    verdict = verification.verify(inline.db, inline.vectors, inline.storage)
    recipe = inline.row(store, file).recipe
    monkeypatch.setattr(indexes, "lock", lambda *_: None)

    verification.repair(inline.db, verdict)

    assert inline.messages() == []
    assert inline.row(store, file).recipe == recipe is not None


def test_command_reports_faults_and_requests_their_repair(
    sqlite: Database, tmp_path: Path, parser: ReadOnce, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = open_vectors("", tmp_path / "vectors")
    with works(tmp_path, sqlite.url, vectors, parser) as inline:
        store, file = inline.store(), inline.upload(PROSE)
        inline.attach(store, file)
        inline.drive()
        stray(inline, "vs_stranger")
        row = inline.row(store, file)
        vectors.drop(where(inline, store), [str(row.document)])
        said = [
            (verification.main(inline.context.config, repairs=wanted), capsys.readouterr().out.splitlines())
            for wanted in (False, True)
        ]
        inline.drive()
        inline.purge()
        whole = verification.main(inline.context.config, repairs=False), capsys.readouterr().out
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


def test_command_reports_unavailable_vector_database(
    inline: Works, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> Vectors:
        raise VectorsUnavailable("nobody answers")

    monkeypatch.setattr(LazyVectors, "get", away)

    assert verification.main(inline.context.config, repairs=True) == 2
    assert "cannot be reached: nobody answers" in capsys.readouterr().err


def test_command_reports_unavailable_storage(
    inline: Works, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> Verification:
        raise StorageUnavailable("The file storage cannot be reached: nobody answers")

    monkeypatch.setattr(verification, "verify", away)

    assert verification.main(inline.context.config, repairs=True) == 2
    assert capsys.readouterr().err == "The file storage cannot be reached: nobody answers\n"
