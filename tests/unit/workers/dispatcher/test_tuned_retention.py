"""Files of deleted models are removed with a receipt, and so is data that nothing needs."""

from pathlib import Path

import pytest
from sqlalchemy import select, update

from jobs.clock import now
from jobs.db.engine import Database
from jobs.finetuning import datasets
from jobs.finetuning.tables import Dataset
from jobs.ledger.states import JobState
from jobs.ledger.tables import Audit, Job
from jobs.platform.storage import DiskStorage
from jobs.registry import models
from jobs.settings import Settings
from tests.support.sample_jobs import new_job
from workers.dispatcher.retention import Retention

pytestmark = pytest.mark.dialects
NAME = "ft:tiny:p::1"


@pytest.fixture
def retention(db: Database, tmp_path: Path, storage: DiskStorage) -> Retention:
    return Retention(Settings(data_dir=tmp_path, database_url=db.url), db, storage)


def trained(db: Database, storage: DiskStorage) -> None:
    """Create a job whose result is its last checkpoint, with one checkpoint before that and its training data."""
    for step in (1, 2):
        storage.put(f"training/ftjob-1/{step}/adapter", b"x")
    storage.put("datasets/abc", b"x")
    with db.write() as session:
        session.add(new_job(id="ftjob-1", project_id="p", state=JobState.SUCCEEDED))
        datasets.add(session, "ftjob-1", datasets.TRAINING, "file-1", sha256="abc", size=1, rows=10)
        for name, step in ((f"{NAME}:ckpt-step-1", 1), (f"{NAME}:ckpt-step-2", 2), (NAME, None)):
            models.register(
                session,
                name=name,
                project_id="p",
                base="tiny",
                job_id="ftjob-1",
                method="lora",
                location=f"training/ftjob-1/{step or 2}",
                sha256="0" * 64,
                manifest={},
                checkpoint_step=step,
            )


def delete(db: Database, name: str) -> None:
    with db.write() as session:
        assert models.delete(session, name, "p") is not None


def later(db: Database) -> None:
    with db.write() as session:
        session.execute(update(Dataset).values(created_at=now() - 7200))


def receipts(db: Database) -> list[str]:
    with db.read() as session:
        rows = session.scalars(select(Audit.details).where(Audit.action == "model.purge").order_by(Audit.id))
        return sorted(details["name"] for details in rows if details)


def kept(db: Database) -> list[str]:
    with db.read() as session:
        return list(session.scalars(select(Dataset.sha256)))


def test_the_files_of_a_deleted_model_go_once_with_a_receipt(
    db: Database, storage: DiskStorage, retention: Retention
) -> None:
    trained(db, storage)
    delete(db, NAME)

    for _ in range(2):
        retention.run()

    assert storage.list("training") == []
    assert receipts(db) == [NAME, f"{NAME}:ckpt-step-1", f"{NAME}:ckpt-step-2"]


def test_files_that_another_model_needs_stay(db: Database, storage: DiskStorage, retention: Retention) -> None:
    trained(db, storage)
    delete(db, f"{NAME}:ckpt-step-1")
    delete(db, f"{NAME}:ckpt-step-2")

    retention.run()

    assert storage.list("training") == ["training/ftjob-1/2/adapter"]
    assert receipts(db) == [f"{NAME}:ckpt-step-1"]


def test_data_stays_while_a_model_or_a_live_job_needs_it(
    db: Database, storage: DiskStorage, retention: Retention
) -> None:
    trained(db, storage)
    later(db)
    retention.run()
    held = kept(db)
    delete(db, NAME)
    with db.write() as session:
        session.execute(update(Job).values(state=JobState.RUNNING))
    retention.run()
    read = kept(db)
    with db.write() as session:
        session.execute(update(Job).values(state=JobState.FAILED))
    retention.run()

    assert (held, read, kept(db)) == (["abc"], ["abc"], [])


def test_data_that_was_named_just_now_stays(db: Database, storage: DiskStorage, retention: Retention) -> None:
    trained(db, storage)
    delete(db, NAME)

    retention.run()

    assert kept(db) == ["abc"]


def test_erased_data_is_needed_by_no_model(db: Database, storage: DiskStorage, retention: Retention) -> None:
    trained(db, storage)
    later(db)
    with db.write() as session:
        datasets.erase(session, "file-1")

    retention.run()

    assert kept(db) == []
