"""Fine-tuning jobs over HTTP to test with: created, refused, with results and with workers."""

from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.clock import now
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint
from jobs.fleet import workers
from jobs.fleet.tables import Worker
from jobs.ledger.tables import Job
from jobs.queues import Queue
from jobs.registry import models

BASE = "smollm2-135m-instruct"

ROW = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}]}\n'


def upload(client: TestClient, purpose: str = "fine-tune") -> str:
    answer = client.post("/v1/files", files={"file": ("t.jsonl", ROW * 12)}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def create(client: TestClient, **fields: Any) -> dict[str, Any]:
    body = {"model": BASE} | fields
    if "training_file" not in body:
        body["training_file"] = upload(client)
    answer = client.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def error_of(client: TestClient, **fields: Any) -> tuple[int, str, str]:
    answer = client.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": "file-x"} | fields)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def registered(app: FastAPI, job: dict[str, Any], step: int | None = None) -> str:
    """Register the result of a job, or a checkpoint, as training does; return its name."""
    with app.state.services.db.write() as session:
        row = session.get_one(Job, job["id"])
        name = FineTuning.model_validate(row.payload).result
        if step is not None:
            name = f"{name}:ckpt-step-{step}"
            session.add(
                FinetuneCheckpoint(
                    id=f"ftckpt_{step}",
                    job_id=row.id,
                    step=step,
                    location=f"training/{row.id}/{step}",
                    sha256="0" * 64,
                    bytes=1,
                    metrics={"train_loss": 1.5, "train_mean_token_accuracy": 0.5},
                    keeps_optimizer=True,
                    created_at=now() + step,
                )
            )
        models.register(
            session,
            name=name,
            project_id=row.project_id,
            base=BASE,
            job_id=row.id,
            method="lora",
            location=f"training/{row.id}/{step}",
            sha256="0" * 64,
            manifest={},
            checkpoint_step=step,
        )
        return name


def add_worker(app: FastAPI, name: str, training: dict[str, Any] | None) -> None:
    facts: dict[str, Any] = {"host": "h", "pid": 1, "started": 1, "models": ["*"], "slots": 1, "state": "ready"}
    facts |= {"created_at": now(), "seen_at": now(), "training": training, "queues": [Queue.FINETUNE]}
    with app.state.services.db.write() as session:
        workers.register(session, Worker(id=name, pool="finetune", **facts))
