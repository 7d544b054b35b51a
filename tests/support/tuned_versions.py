"""Fine-tuning jobs that end with a version of their model, and their events in the feed, without a training."""

from typing import Any

from jobs.db.engine import Database
from jobs.finetuning.tables import FinetuneData
from jobs.ledger import feed
from jobs.registry import model_versions, models
from jobs.security import keys
from tests.support import sample_jobs

FAMILY = "smollm2:refunds"


def project_of(db: Database, name: str = "Support") -> str:
    with db.write() as session:
        return keys.ensure_project(session, name).id


def trained(db: Database, project_id: str, number: str, *, dataset: str | None = None) -> str:
    """Return the name of the model that a job has trained. Its events are in the feed."""
    job_id, name = f"ftjob-{number}", f"ft:smollm2:support:refunds:{number}"
    payload: dict[str, Any] = {"model": "smollm2", "base": "smollm2", "result": name, "seed": 7}
    payload |= {"datasets": {"training_file": dataset}} if dataset else {}
    sample_jobs.finishing(db, id=job_id, kind="finetuning", project_id=project_id, payload=payload)
    with db.write() as session:
        session.add(FinetuneData(job_id=job_id, role="training", file_id="file-rows", sha256="d" * 64))
        hashed = number[-1] * 64
        models.register(
            session,
            name=name,
            project_id=project_id,
            base="smollm2",
            job_id=job_id,
            method="lora",
            location=f"models/{number}",
            sha256=hashed,
            manifest={},
        )
    sample_jobs.close(db, job_id)
    number_events(db)
    return name


def moved(db: Database, project_id: str, name: str, stage: model_versions.Stage) -> None:
    """Move a version to a stage; one that is in production makes room."""
    with db.write() as session:
        version = model_versions.find(session, name, project_id, lock=True)
        assert version is not None
        model_versions.stage(session, version, stage, actor="key:test", archive_existing=True)
    number_events(db)


def number_events(db: Database) -> None:
    with db.write() as session:
        feed.number(session)
