"""A fine-tuning job whose steps go to experiment trackers, without a training: its rows are written by the test."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import update

from jobs.clock import now
from jobs.db.engine import Database, insert_into
from jobs.files.tables import File
from jobs.finetuning import jobs, tracking, training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneStep, FinetuneTracking
from jobs.fleet.models_file import Models
from jobs.fleet.tables import Worker
from jobs.ledger.tables import Job
from jobs.platform.storage import DiskStorage
from jobs.security import keys
from jobs.settings import Settings
from workers.finetuning.tracked_run import Tracker
from workers.finetuning.tracking import send_due
from workers.runtime.context import Context, WorkerStatus
from workers.runtime.heartbeat import Heartbeat

JOB = "ftjob-1"
RESULT = "ft:tiny:p::1"


class TrackedJob:
    """The rows of a job, and the threads' work done by the test."""

    def __init__(self, db: Database, folder: Path, tracker: str, **settings: Any) -> None:
        config = Settings(data_dir=folder, database_url=db.url, **settings)
        stop = threading.Event()
        heartbeat = Heartbeat(db, Worker, heartbeat_seconds=60, stop=stop)
        storage = DiskStorage(folder / "files")
        self.context = Context(config, db, storage, "w", stop, WorkerStatus(), heartbeat, Models(config))
        self.db, self.tracker = db, tracker
        wandb = {"project": "proj", "tags": ["a"]} if tracker == tracking.WANDB else None
        asked = {"model": "tiny", "base": "tiny", "result": RESULT, "seed": 7, "wandb": wandb}
        with db.write() as session:
            owner = keys.ensure_project(session, "p").id
            file = File(
                id="file-t",
                project_id=owner,
                purpose="fine-tune",
                filename="t",
                bytes=1,
                path="files/t",
                created_at=1.0,
            )
            session.add(file)
            session.flush()
            payload = FineTuning.model_validate(asked)
            jobs.submit(session, payload, job_id=JOB, project_id=owner, training_file=file, actor="test")
            tracking.begin(session, JOB, [tracker])
            tracking.begin(session, JOB, [tracker])  # each claim on the training does

    def train(self, steps: Iterable[int], *, loss: float = 1.0) -> None:
        """Write the rows of steps, as the recorder does: those of a resumed training replace others."""
        with self.db.write() as session:
            for n in steps:
                row = {"job_id": JOB, "step": n, "created_at": now(), "epoch": n / 10, "train_loss": loss / n}
                row |= {"learning_rate": 1e-4, "valid_loss": 2.0 if n % 5 == 0 else None}
                new = insert_into(session, FinetuneStep).values(row)
                session.execute(new.on_conflict_do_update(index_elements=["job_id", "step"], set_=row))

    def end(self, state: str = "succeeded") -> None:
        with self.db.write() as session:
            session.get_one(Job, JOB).state = state

    def send(self, tracker: Tracker) -> bool:
        """Do what is due after a while."""
        with self.db.write() as session:
            due = FinetuneTracking.due_at.is_not(None)
            session.execute(update(FinetuneTracking).where(due).values(due_at=now()))
        return send_due(self.context, self.tracker, tracker)

    @property
    def row(self) -> FinetuneTracking:
        with self.db.read() as session:
            return session.get_one(FinetuneTracking, (JOB, self.tracker))

    def warnings(self) -> list[str]:
        with self.db.read() as session:
            events = training_events.newest(session, JOB, before=None, limit=100)
        return [event.message for event in events if event.level == "warn"]
