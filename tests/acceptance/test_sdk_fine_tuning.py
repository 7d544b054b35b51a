"""The SDK's whole `fine_tuning` surface, against a web process in which nobody trains."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI

from jobs.clock import now
from jobs.finetuning import training_events
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint
from jobs.ledger.tables import Job
from jobs.registry import models
from jobs.security import keys
from tests.support.web import make_key, running_app, serve

BASE = "smollm2-135m-instruct"
ROW = b'{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}]}\n'


@pytest.fixture
def web(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path, sqlite_url) as web:
        yield web


@pytest.fixture
def client(web: FastAPI) -> Iterator[OpenAI]:
    with serve(web) as url, OpenAI(base_url=f"{url}/v1", api_key=make_key(web), max_retries=0) as client:
        yield client


def trained(web: FastAPI, job_id: str) -> str:
    """Write what the training of two steps leaves: an event, a checkpoint and its model; return the model's name."""
    with web.state.services.db.write() as session:
        job = session.get_one(Job, job_id)
        training_events.record_metrics(session, job_id, "Step 2/2: training loss=1.00", {"step": 2, "train_loss": 1.0})
        session.add(
            FinetuneCheckpoint(
                id="ftckpt_1", job_id=job_id, step=2, location="training/1", sha256="0" * 64, bytes=1,
                metrics={"train_loss": 1.0}, keeps_optimizer=True, created_at=now(),
            )
        )  # fmt: skip
        name = f"{FineTuning.model_validate(job.payload).result}:ckpt-step-2"
        facts = {"base": BASE, "method": "lora", "location": "training/1", "sha256": "0" * 64, "manifest": {}}
        models.register(session, name=name, project_id=job.project_id, job_id=job_id, checkpoint_step=2, **facts)
        return name


def test_jobs_are_created_found_and_steered(client: OpenAI) -> None:
    file = client.files.create(file=("t.jsonl", ROW * 12), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        suffix="s",
        seed=1,
        metadata={"team": "a"},
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": 2}}},
        extra_body={"training": {"rank": 4}},
    )
    client.fine_tuning.jobs.create(model=BASE, training_file=file.id)

    listed = list(client.fine_tuning.jobs.list(limit=1, metadata={"team": "a"}))
    everything = list(client.fine_tuning.jobs.list(limit=1))
    jobs = client.fine_tuning.jobs
    statuses = [change(made.id).status for change in (jobs.pause, jobs.resume, jobs.cancel)]

    assert [job.id for job in listed] == [made.id]
    assert len(everything) == 2
    assert made.method is not None
    assert made.method.dpo is not None
    assert made.method.dpo.hyperparameters is not None
    assert (made.method.dpo.hyperparameters.beta, made.hyperparameters.n_epochs, made.seed) == (0.1, 2, 1)
    assert statuses == ["paused", "validating_files", "cancelled"]
    assert client.fine_tuning.jobs.retrieve(made.id).status == "cancelled"


def test_events_checkpoints_permissions_and_models(web: FastAPI, client: OpenAI) -> None:
    file = client.files.create(file=("t.jsonl", ROW * 12), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
    name = trained(web, job.id)
    with web.state.services.db.write() as session:
        other = keys.ensure_project(session, "another").id

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=1))
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    permissions = client.fine_tuning.checkpoints.permissions
    (granted,) = permissions.create(name, project_ids=[other])
    listed = list(permissions.list(name, order="ascending", project_id=other))
    revoked = permissions.delete(granted.id, fine_tuned_model_checkpoint=name)

    assert [event.type for event in events] == ["metrics", "message", "message"]
    assert [(one.fine_tuned_model_checkpoint, one.metrics.train_loss) for one in checkpoints] == [(name, 1.0)]
    assert [(one.id, one.project_id) for one in listed] == [(granted.id, other)]
    assert (revoked.deleted, list(permissions.list(name))) == (True, [])
    assert client.models.retrieve(name).owned_by == "default"
    assert name in {model.id for model in client.models.list()}
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)


def test_unsupported_method_or_model_is_bad_request(client: OpenAI) -> None:
    file = client.files.create(file=("t.jsonl", ROW * 12), purpose="fine-tune")

    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=BASE, training_file=file.id, method={"type": "reinforcement"})
    with pytest.raises(openai.BadRequestError, match="Models that can be trained"):
        client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)

    assert (refused.value.code, refused.value.param) == ("invalid_value", "method.type")
