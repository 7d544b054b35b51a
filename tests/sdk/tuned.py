"""A fine-tuning job that has succeeded, for the suites: the rows and the file that a training leaves."""

from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.files.tables import File
from jobs.finetuning import jobs, names, training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint, FinetunePlan
from jobs.ids import new_id
from jobs.ledger.tables import Job, Outbox
from jobs.registry import models
from jobs.security import keys
from tests.support.inline_deployment import InlineDeployment
from workers.finetuning import results

BASE = "base"
_CURVE = f"{results.HEADER}\n1,2.0,,,\n2,1.0,,,\n".encode()


def tuned(inline: InlineDeployment, project: str) -> dict[str, Any]:
    """Write a job of a project; return what a suite is told about it."""
    path = f"files/{new_id('file-')}"
    inline.storage.put(path, _CURVE)
    job_id = new_id(names.JOB_PREFIX)
    with inline.db.write() as session:
        owner, other = (keys.ensure_project(session, name).id for name in (project, "another"))
        payload = FineTuning(model=BASE, base=BASE, result=names.model_name(BASE, project, None, job_id), seed=1)
        training = _file(session, owner, path, "fine-tune")
        job = jobs.submit(session, payload, job_id=job_id, project_id=owner, training_file=training, actor="test")
        session.execute(delete(Outbox).where(Outbox.job_id == job.id))
        job.state, job.completed_at = "succeeded", now()
        job.output_file_id = _file(session, owner, path, results.PURPOSE).id
        numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0, "rows": 12, "validation_rows": 0}
        session.add(FinetunePlan(job_id=job.id, tokens=120, steps=2, trained_tokens=240, **numbers))
        for step in (1, 2):
            _checkpoint(session, job, payload.result, step)
    return {"base": BASE, "job": job_id, "model": payload.result, "other_project": other}


def _file(session: Session, owner: str, path: str, purpose: str) -> File:
    file = File(
        id=new_id("file-"),
        project_id=owner,
        purpose=purpose,
        filename="a",
        bytes=len(_CURVE),
        path=path,
        created_at=now(),
    )
    session.add(file)
    session.flush()
    return file


def _checkpoint(session: Session, job: Job, result: str, step: int) -> None:
    """Write the event and the checkpoint of a step, with its model; that of the last step is the job's too."""
    training_events.record_metrics(session, job.id, f"Step {step}/2", {"step": step, "total_steps": 2})
    location = f"training/{job.id}/{step}"
    stored = {"location": location, "sha256": "0" * 64}
    session.add(
        FinetuneCheckpoint(
            id=new_id("ftckpt_"), job_id=job.id, step=step, bytes=1, metrics={"step": step, "train_loss": 2.0 / step},
            keeps_optimizer=False, created_at=now() + step, **stored,
        )
    )  # fmt: skip
    registered = {names.checkpoint_name(result, step): step} | ({result: None} if step == 2 else {})
    for name, checkpoint_step in registered.items():
        facts = {"base": BASE, "method": "lora", "manifest": {}, "checkpoint_step": checkpoint_step, **stored}
        models.register(session, name=name, project_id=job.project_id, job_id=job.id, **facts)
