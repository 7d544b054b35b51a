"""The bound on a project's bytes: what is counted, when it is counted again, and who is refused."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import ProjectFull
from jobs.evals.tables import EvalRun
from jobs.files.tables import File, Upload, UploadPart
from jobs.finetuning.tables import Dataset, FinetuneCheckpoint, FinetuneData, ImportedFile
from jobs.inference.tables import Conversation, StoredCompletion, StoredResponse
from jobs.ledger.tables import Job
from jobs.prompts.tables import PromptVersion
from jobs.registry.tables import TunedModel
from jobs.retrieval.tables import VectorStoreFile
from jobs.security.tables import StorageUsage
from jobs.usage import stored_bytes

LIMIT = 1000


def store(db: Database, size: int, name: str = "file-1", project: str = "p") -> None:
    facts = {"purpose": "batch", "filename": "f", "path": f"files/{name}", "created_at": 1.0}
    with db.write() as session:
        session.add(File(id=name, project_id=project, bytes=size, **facts))


def age(db: Database) -> None:
    """Let the last count be old."""
    with db.write() as session:
        session.execute(update(StorageUsage).values(counted_at=now() - 3600))


def upload(status: str, size: int) -> list[Upload | UploadPart]:
    facts = {"filename": "f", "purpose": "batch", "mime_type": "x", "bytes": 1, "created_at": 1.0, "expires_at": 9.0}
    part = UploadPart(id=f"part_{status}", upload_id=f"upload_{status}", bytes=size, path="x", created_at=1.0)
    return [Upload(id=f"upload_{status}", project_id="p", status=status, **facts), part]


def test_every_kind_of_stored_bytes_is_counted(db: Database) -> None:
    store(db, 1)
    attached = {"filename": "f", "status": "completed", "created_at": 1.0, "chunking": {}, "job_id": "j", "line": 0}
    lasting = {"project_id": "p", "created_at": 1.0, "expires_at": 9.0}
    with db.write() as session:
        session.add_all(upload("pending", 10))
        session.add_all(upload("completed", 7))  # its file is counted
        session.add(VectorStoreFile(store_id="vs", id="f", project_id="p", version="v", usage_bytes=100, **attached))
        session.add(StoredResponse(id="r", bytes=1000, **lasting))
        session.add(StoredResponse(id="unmeasured", **lasting))
        session.add(StoredCompletion(id="c", bytes=10_000, requested_model="m", model="m", **lasting))
        session.add(
            Conversation(id="v", project_id="p", version=1, path="x", metadata_={}, created_at=1.0, bytes=100_000)
        )
        run = {"id": "run", "eval_id": "e", "name": "n", "data_source": {}, "created_at": 1.0}
        session.add(EvalRun(project_id="p", bytes=1_000_000, **run))
        version = {"prompt_id": "q", "version": 1, "hash": "0", "content": {}, "created_at": 1.0}
        session.add(PromptVersion(project_id="p", bytes=10_000_000, **version))
        session.add(ImportedFile(job_id="import", name="adapter.safetensors", file_id="f", bytes=100_000_000))
        model = {"base": "b", "method": "lora", "sha256": "0", "manifest": {}, "state": "ready", "created_at": 1.0}
        model |= {"id": "m", "name": "ft:b:p:m", "job_id": "import", "location": "imports/import"}
        session.add(TunedModel(project_id="p", **model))
    store(db, 5, "file-2", "another")

    with db.read() as session:
        stored = stored_bytes.bytes_by_project(session)

    assert stored["p"] == {
        "files": 1,
        "upload_parts": 10,
        "vector_stores": 100,
        "responses": 1000,
        "chat_completions": 10_000,
        "datasets": 0,
        "checkpoints": 0,
        "conversations": 100_000,
        "eval_runs": 1_000_000,
        "prompts": 10_000_000,
        "imported_models": 100_000_000,
    }
    assert (stored_bytes.count(db, "p"), stored_bytes.count(db, "another")) == (111_111_111, 5)


def trained(db: Database, job_id: str, sha256: str, state: str, **columns: object) -> None:
    """Write a fine-tuning job on a snapshot of 10 bytes, with a checkpoint of 100 bytes and its model."""
    model = {"base": "b", "method": "lora", "sha256": "0", "manifest": {}, "state": "ready", "created_at": 1.0}
    model |= {"location": f"training/{job_id}/1", "checkpoint_step": 1, "data_erased": False} | columns
    with db.write() as session:
        job = Job(id=job_id, project_id="p", kind="finetuning", payload={}, state=state, created_at=1.0, window="")
        session.add(job)
        session.add(FinetuneData(job_id=job_id, role="training", file_id="file-1", sha256=sha256, rows=1))
        session.merge(Dataset(sha256=sha256, bytes=10, location=f"datasets/{sha256}", created_at=1.0))
        facts = {"sha256": "0", "metrics": {}, "keeps_optimizer": True, "created_at": 1.0}
        location = f"training/{job_id}/1"
        session.add(FinetuneCheckpoint(id=job_id, job_id=job_id, step=1, bytes=100, location=location, **facts))
        session.add(TunedModel(id=job_id, project_id="p", name=f"ft:{job_id}", job_id=job_id, **model))


def sizes(db: Database) -> tuple[int, int]:
    with db.read() as session:
        stored = stored_bytes.bytes_by_project(session)["p"]
    return stored["datasets"], stored["checkpoints"]


def test_snapshot_counts_once_while_live_job_or_model_needs_it(db: Database) -> None:
    trained(db, "live", "a", "running")
    trained(db, "ended", "a", "succeeded")
    trained(db, "other", "b", "cancelled")
    assert sizes(db) == (20, 300)

    trained(db, "erased", "c", "succeeded", data_erased=True)
    assert sizes(db) == (20, 400)
    trained(db, "deleted", "d", "failed", deleted_at=2.0, location="")

    assert sizes(db) == (20, 400)
    assert stored_bytes.count(db, "p") == 420


def test_without_a_limit_nothing_is_counted(db: Database) -> None:
    store(db, LIMIT)

    stored_bytes.check(db, "p", LIMIT, 0)
    with db.write() as session:
        stored_bytes.reserve(session, "p", LIMIT, 0)
        stored_bytes.check_not_full(session, "p", 0)
    stored_bytes.count_if_due(db, "p", 0)

    with db.read() as session:
        assert session.get(StorageUsage, "p") is None


def test_creates_at_the_same_moment_do_not_exceed_the_limit(db: Database) -> None:
    store(db, 100)
    stored_bytes.check(db, "p", 1, LIMIT)
    together = threading.Barrier(8)

    def create(_: int) -> int:
        together.wait()
        done = 0
        for _ in range(8):
            try:
                db.retrying(lambda session: stored_bytes.reserve(session, "p", 50, LIMIT))
            except ProjectFull:
                continue
            done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 18  # 100 + 18 * 50 = 1000


def test_bytes_added_during_count_are_not_missed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_bytes.count(db, "p")
    summed = stored_bytes._sum_all

    def interrupted(session: object, project_id: str) -> tuple[int, int]:
        counted = summed(session, project_id)  # type: ignore[arg-type]
        with db.write() as other:
            stored_bytes.reserve(other, "p", 600, LIMIT)
        store(db, 600)
        return counted

    monkeypatch.setattr(stored_bytes, "_sum_all", interrupted)
    stored_bytes.count(db, "p")
    monkeypatch.undo()

    with pytest.raises(ProjectFull), db.write() as session:
        stored_bytes.reserve(session, "p", 401, LIMIT)


def test_deleted_bytes_are_free_after_next_count(db: Database) -> None:
    store(db, LIMIT)
    with pytest.raises(ProjectFull):
        stored_bytes.check(db, "p", 1, LIMIT)
    with db.write() as session:
        session.execute(delete(File))

    with pytest.raises(ProjectFull):  # counted a moment ago
        stored_bytes.check(db, "p", 1, LIMIT)
    age(db)

    assert stored_bytes.check(db, "p", 1, LIMIT) == LIMIT - 1


def test_bytes_stored_by_workers_fill_project_at_next_count(db: Database) -> None:
    stored_bytes.check(db, "p", 1, LIMIT)
    store(db, LIMIT)
    age(db)
    stored_bytes.count_if_due(db, "p", LIMIT)

    with pytest.raises(ProjectFull) as refused, db.write() as session:
        stored_bytes.check_not_full(session, "p", LIMIT)

    assert (refused.value.status, refused.value.code) == (507, "project_storage_full")
    with db.write() as session:
        stored_bytes.check_not_full(session, "another", LIMIT)
