"""A fine-tuning job from its plan to its model: the real ledger, dispatcher, planner's half, run and finish.

The trainer computes nothing here, but for the last test, which `make verify` runs: it trains a tiny model with trl.
"""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import select
from typer.testing import CliRunner

from cli.main import app as cli
from jobs.clock import now
from jobs.db.engine import Database
from jobs.files.tables import File
from jobs.finetuning import datasets, estimates, examination, jobs
from jobs.finetuning.examination import DatasetFindings, Part
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint, FinetuneEvent, FinetunePlan, FinetuneStep
from jobs.ids import new_id
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job, Shard
from jobs.platform import processes
from jobs.queues import Queue
from jobs.registry.tables import ModelVersion, TunedModel
from jobs.security import keys
from jobs.usage import budgets, minutes
from jobs.usage.tables import Spend
from tests.support import training_worker
from tests.support.inline_deployment import InlineDeployment, running
from tests.support.training_thread import training
from tests.support.web import make_key, running_app, serve
from workers.finetuning import results
from workers.kinds import HANDLERS
from workers.runtime.context import Context

FAKE = "tests.support.fake_trainer"
ROWS = b"".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}."}]}
    ).encode()
    + b"\n"
    for n in range(20)
)
STEPS = 20  # two epochs of batches of two


@dataclass
class Site:
    """A deployment with a worker that trains."""

    inline: InlineDeployment
    worker: Context
    base: Path

    def take_turns_after(self, seconds: float) -> None:
        """Have trainings stop for other projects after `seconds`."""
        self.worker = replace(self.worker, timings=replace(self.worker.timings, training_turn=seconds))

    def submit(self, monkeypatch: pytest.MonkeyPatch, project: str = "default", **payload: Any) -> str:
        """Submit a job whose files have been examined already."""
        sha256 = hashlib.sha256(ROWS).hexdigest()
        self.inline.storage.put(datasets.location(sha256), ROWS)
        part = Part(sha256, len(ROWS), 20)
        general = Part(sha256, len(ROWS), 20) if "general_file" in payload else None
        found = DatasetFindings(training=part, validation=part, general=general, tokens=400, longest=40)
        monkeypatch.setattr(examination, "examine", lambda _question, _stopped: found)
        file_id, job_id = new_id("file-"), new_id(jobs.FINETUNING.prefix)
        path = f"files/{file_id}"
        self.inline.storage.put(path, ROWS)
        asked = {
            "model": "tiny",
            "base": "tiny",
            "result": f"ft:tiny:default::{job_id[-6:]}",
            "seed": 7,
            "hyperparameters": {"n_epochs": 2, "batch_size": 2},
            "validation": {"type": "holdout"},
            "training": {"eval_steps": 5},
        }
        with self.inline.db.write() as session:
            owner = keys.ensure_project(session, project)
            file = File(
                id=file_id,
                project_id=owner.id,
                purpose="fine-tune",
                filename="rows.jsonl",
                bytes=len(ROWS),
                path=path,
                created_at=now(),
            )
            session.add(file)
            session.flush()
            job = FineTuning.model_validate({**asked, **payload})
            jobs.submit(session, job, job_id=job_id, project_id=owner.id, training_file=file, actor="test")
        return job_id

    def count(self, table: Any, job_id: str) -> int:
        return len(self.rows(table, job_id))

    def rows(self, table: Any, job_id: str) -> list[Any]:
        with self.inline.db.read() as session:
            return list(session.scalars(select(table).where(table.job_id == job_id)))

    def events(self, job_id: str) -> list[str]:
        return [event.message for event in sorted(self.rows(FinetuneEvent, job_id), key=lambda one: one.position)]

    def read(self, location: str) -> bytes:
        with self.inline.storage.reader(location) as handle:
            data: bytes = handle.read()
            return data

    def model(self, name: str) -> TunedModel:
        with self.inline.db.read() as session:
            return session.scalars(select(TunedModel).where(TunedModel.name == name)).one()


@pytest.fixture
def module() -> str:
    return FAKE


@pytest.fixture
def site(db: Database, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setitem(HANDLERS, jobs.NAME, HANDLERS[jobs.NAME])
    training_worker.use(module)
    base = tmp_path / "tiny"
    base.mkdir()
    models = tmp_path / "models.yaml"
    source = {"path": str(base)}
    models.write_text(json.dumps({"models": {"tiny": {"source": source, "engine": "vllm", "queue": Queue.GENERATE}}}))
    with running(db, tmp_path, models_file=str(models)) as inline, training(inline) as worker:
        yield Site(inline, worker, base)


def trainer_of(job_id: str) -> int | None:
    """Return the pid of the process that trains a job."""
    for pid in processes.table():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if f"/{job_id}-".encode() in words and b"spec.json" in words:
            return pid
    return None


def assert_whole(site: Site, job: Job) -> None:
    """Check that the job succeeded with every step once, its files, its checkpoints and its model."""
    assert (job.state, job.errors) == (JobState.SUCCEEDED, None)
    steps = sorted(site.rows(FinetuneStep, job.id), key=lambda step: step.step)
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert [step.step for step in steps if step.valid_loss is not None] == [5, 10, 15, 20]
    table = list(csv.reader(site.read(f"files/{job.output_file_id}").decode().splitlines()))
    assert ",".join(table[0]) == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [row[0] for row in table[1:]] == [str(step.step) for step in steps]
    assert [float(row[1]) for row in table[1:]] == [step.train_loss for step in steps]
    assert [row[3] != "" for row in table[1:]] == [step.valid_loss is not None for step in steps]
    drawing = ET.fromstring(site.read(f"files/{job.error_file_id}").decode())
    assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert_tensorboard_has_the_steps(site, job)
    saved = sorted(site.rows(FinetuneCheckpoint, job.id), key=lambda row: row.step)
    assert saved[-1].step == STEPS
    assert not any(row.keeps_optimizer for row in saved)
    for row in saved:
        data = site.read(f"{row.location}/manifest.json")
        assert hashlib.sha256(data).hexdigest() == row.sha256
        names = [path for path in site.inline.storage.list(row.location) if not path.endswith("manifest.json")]
        assert not any("optimizer" in path for path in names)
        assert row.bytes == sum(site.inline.storage.size(path) for path in names)
    model = site.model(job.payload["result"])
    assert (model.state, model.base, model.location) == ("ready", "tiny", saved[-1].location)
    for name, sha256 in model.manifest["files"].items():
        assert hashlib.sha256(site.read(f"{model.location}/{name}")).hexdigest() == sha256
    sizes = [site.inline.storage.size(f"{model.location}/{name}") for name in model.manifest["files"]]
    assert model.manifest["bytes"] == sum(sizes)
    with site.inline.db.read() as session:
        version = session.get_one(ModelVersion, model.name)
        numbers = session.scalars(
            select(ModelVersion.number).where(
                ModelVersion.project_id == version.project_id, ModelVersion.family == version.family
            )
        ).all()
        assert (version.stage, sorted(numbers)) == ("none", list(range(1, len(numbers) + 1)))
    assert site.model(f"{model.name}:ckpt-step-{saved[0].step}").checkpoint_step == saved[0].step
    folders = list(site.inline.storage.folders(f"training/{job.id}"))
    assert sorted(folders) == sorted(row.location.rpartition("/")[2] for row in saved)
    assert site.rows(FinetunePlan, job.id)[0].trained_tokens == 800


def assert_tensorboard_has_the_steps(site: Site, job: Job) -> None:
    (plan,) = site.rows(FinetunePlan, job.id)
    with site.inline.db.read() as session:
        file = session.get_one(File, plan.tensorboard_file_id)
    data = site.read(file.path)
    assert (file.purpose, file.bytes, "tfevents" in file.filename) == (results.PURPOSE, len(data), True)
    assert (data.count(b"train/loss"), data.count(b"valid/loss")) == (STEPS, 4)


def test_job_is_trained_to_its_model(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = site.submit(monkeypatch)

    (job,) = site.inline.drain(job_id)

    assert_whole(site, job)
    events = site.events(job_id)
    assert "Fine-tuning started on cpu in float32." in events
    assert any(event.startswith("Step 20/20: training loss=") for event in events)
    assert "Checkpoint created at step 20." in events
    assert events[-1] == "The job has successfully completed"
    assert "Mean loss on 64 texts: 3.000 nats a token before training." in events
    assert "Mean loss on 64 texts: 3.000 nats a token before training, 3.500 after it." in events
    with site.inline.db.read() as session:
        purposes = session.scalars(select(File.purpose).where(File.id.in_([job.output_file_id, job.error_file_id])))
        assert set(purposes) == {results.PURPOSE}


@pytest.mark.parametrize(
    ("asked", "best"),
    [({"training": {"load_best": True}}, True), ({"early_stopping": {"patience": 9}}, True), ({}, False)],
)
def test_result_is_best_checkpoint_only_on_request(
    site: Site, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], best: bool
) -> None:
    job_id = site.submit(monkeypatch, **asked)
    monkeypatch.setenv("FAKE_TRAINER", '{"best": 10}')

    (job,) = site.inline.drain(job_id)

    assert site.model(job.payload["result"]).manifest["run"]["step"] == (10 if best else 20)
    told = "The result is the checkpoint of step 10, which has the lowest validation loss: 1."
    assert (told in site.events(job_id)) is best


def test_dry_run_trains_three_steps_and_makes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = site.submit(monkeypatch, dry_run=True)

    (job,) = site.inline.drain(job_id)

    assert (job.state, job.output_file_id, job.error_file_id) == (JobState.SUCCEEDED, None, None)
    assert [step.step for step in site.rows(FinetuneStep, job_id)] == [1, 2, 3]
    assert site.rows(FinetuneCheckpoint, job_id) == []
    assert site.rows(TunedModel, job_id) == []
    assert not any("model created" in event for event in site.events(job_id))
    with site.inline.db.read() as session:
        asked = FineTuning.model_validate({**job.payload, "dry_run": False, "seed": 8})
        estimate = estimates.estimate_from_history(session, asked, site.rows(FinetunePlan, job_id)[0])
    assert estimate is not None
    assert (estimate.seconds, estimate.memory_bytes, estimate.steps, estimate.batch_size) == (8.0, 1 << 20, 3, 2)


@pytest.mark.verify
def test_general_file_is_read_and_retained_like_training_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = site.submit(monkeypatch, general_file="file-general")

    (job,) = site.inline.drain(job_id)

    assert any(event.startswith("Mean loss on 20 texts:") for event in site.events(job_id))
    with site.inline.db.read() as session:
        assert datasets.holders(session, "file-general")[0] == job.payload["result"]
    assert site.model(job.payload["result"]).manifest["data"]["general"] == hashlib.sha256(ROWS).hexdigest()


def test_trainer_and_worker_are_killed_and_nothing_is_lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_kills_lose_nothing(site, monkeypatch, FAKE, 1)


def assert_kills_lose_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, module: str, times: int, timeout: float = 60.0
) -> None:
    """Kill the trainer, then its worker, `times` times after a new checkpoint; check that the job ends as without."""
    monkeypatch.setenv("FAKE_TRAINER", '{"seconds": 0.1}')
    job_id = site.submit(monkeypatch)
    site.inline.elsewhere = lambda _task, queue, _arguments: queue == Queue.FINETUNE  # nobody trains yet
    site.inline.until(lambda: site.inline.job(job_id).state == JobState.RUNNING)
    victims = []
    for _ in range(times):
        before = site.count(FinetuneCheckpoint, job_id)
        victims.append(worker_process(site, job_id, module))
        site.inline.until(lambda before=before: site.count(FinetuneCheckpoint, job_id) > before, timeout)
        child = trainer_of(job_id)
        assert child is not None
        os.kill(child, signal.SIGKILL)
        site.inline.until(lambda dead=child: trainer_of(job_id) not in (None, dead), timeout)
        child = trainer_of(job_id)
        victims[-1].kill()
        victims[-1].wait()
        site.inline.until(lambda gone=child: not processes.start_time(gone or 0), timeout)
        site.inline.until(lambda: freed(site, job_id), timeout)
    monkeypatch.setenv("FAKE_TRAINER", "{}")
    victims.append(worker_process(site, job_id, module))

    (job,) = site.inline.drain(job_id, timeout=timeout)

    victims[-1].kill()
    victims[-1].wait()
    assert_whole(site, job)
    assert any("The trainer died" in event for event in site.events(job_id))
    assert any("goes on after step" in event for event in site.events(job_id))


def worker_process(site: Site, job_id: str, module: str) -> "subprocess.Popen[bytes]":
    arguments = [str(site.inline.config.data_dir), site.inline.db.url, job_id, module]
    return subprocess.Popen([sys.executable, "-m", "tests.support.training_worker", *arguments])


def freed(site: Site, job_id: str) -> bool:
    with site.inline.db.read() as session:
        return session.get_one(Shard, (job_id, 0)).worker_id is None


def running_trainer(site: Site, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.2) -> tuple[str, int]:
    """Submit a job, and return it and the pid of its trainer once that has trained a step."""
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"seconds": seconds}))
    job_id = site.submit(monkeypatch)
    site.inline.until(lambda: site.count(FinetuneStep, job_id) > 0)
    pid = trainer_of(job_id)
    assert pid is not None
    return job_id, pid


def test_cancelled_job_ends_its_trainer_and_keeps_its_checkpoints(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, pid = running_trainer(site, monkeypatch)
    site.inline.until(lambda: site.count(FinetuneCheckpoint, job_id) > 0)

    with site.inline.db.write() as session:
        ledger.cancel(session, job_id, actor="test")
    (job,) = site.inline.drain(job_id)

    assert job.state == JobState.CANCELLED
    site.inline.until(lambda: processes.start_time(pid) is None)
    assert any(row.keeps_optimizer for row in site.rows(FinetuneCheckpoint, job_id))
    assert site.read(f"files/{job.output_file_id}").startswith(results.HEADER.encode())
    with site.inline.db.read() as session:
        assert not session.scalars(select(TunedModel).where(TunedModel.name == job.payload["result"])).all()


def test_paused_job_makes_a_checkpoint_and_goes_on_from_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, pid = running_trainer(site, monkeypatch)

    with site.inline.db.write() as session:
        jobs.pause(session, session.get_one(Job, job_id), actor="test")
    site.inline.until(lambda: freed(site, job_id))
    saved = max(row.step for row in site.rows(FinetuneCheckpoint, job_id))
    assert site.inline.job(job_id).waiting_for == "pause"
    assert processes.start_time(pid) is None
    assert max(row.step for row in site.rows(FinetuneStep, job_id)) == saved < STEPS
    monkeypatch.setenv("FAKE_TRAINER", "{}")
    with site.inline.db.write() as session:
        jobs.resume(session, session.get_one(Job, job_id), actor="test")

    (job,) = site.inline.drain(job_id)

    assert_whole(site, job)
    assert any(f"goes on after step {saved}" in event for event in site.events(job_id))


def test_training_makes_a_checkpoint_at_the_spend_limit_and_continues(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, _ = running_trainer(site, monkeypatch)
    project_id = site.inline.job(job_id).project_id
    with site.inline.db.write() as session:
        session.merge(Spend(project_id=project_id, month=minutes.month_of(now()), amount=budgets.MICROS_PER_CENT))
        budgets.change_limit(session, project_id, 1, actor="operator")
    site.inline.until(lambda: freed(site, job_id))

    assert site.inline.job(job_id).waiting_for == "spend_limit"
    assert site.rows(FinetuneCheckpoint, job_id)

    monkeypatch.setenv("FAKE_TRAINER", "{}")
    with site.inline.db.write() as session:
        budgets.change_limit(session, project_id, 2, actor="operator")
    (job,) = site.inline.drain(job_id)

    assert_whole(site, job)


def test_worker_that_stops_has_a_checkpoint_made_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, pid = running_trainer(site, monkeypatch)

    site.worker.heartbeat.stop_all()
    site.inline.until(lambda: freed(site, job_id))

    assert processes.start_time(pid) is None
    saved = max(row.step for row in site.rows(FinetuneCheckpoint, job_id))
    assert saved == max(row.step for row in site.rows(FinetuneStep, job_id))


def test_loss_that_is_no_number_fails_the_job_and_keeps_the_last_checkpoint(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRAINER", '{"fail": "non_finite"}')
    job_id = site.submit(monkeypatch)

    (job,) = site.inline.drain(job_id)

    assert job.state == JobState.FAILED
    (error,) = job.errors or []
    assert error["code"] == "non_finite"
    assert "not a finite number" in error["message"]
    assert max(row.step for row in site.rows(FinetuneCheckpoint, job_id)) == 4
    assert site.events(job_id)[-1].startswith("The job failed: The loss of step 5")


@pytest.mark.parametrize(
    ("field", "code"), [("max_seconds", "time_limit"), ("max_device_seconds", "device_time_limit")]
)
def test_job_that_trains_too_long_fails_after_a_checkpoint(
    site: Site, monkeypatch: pytest.MonkeyPatch, field: str, code: str
) -> None:
    monkeypatch.setenv("FAKE_TRAINER", '{"seconds": 0.2}')
    job_id = site.submit(monkeypatch, early_stopping={field: 1})

    (job,) = site.inline.drain(job_id)

    assert job.state == JobState.FAILED
    (error,) = job.errors or []
    assert (error["code"], error["param"], error["line"]) == (code, f"early_stopping.{field}", None)
    saved = max(site.rows(FinetuneCheckpoint, job_id), key=lambda row: row.step)
    assert saved.step == max(row.step for row in site.rows(FinetuneStep, job_id)) < STEPS
    assert saved.keeps_optimizer
    assert site.model(f"{job.payload['result']}:ckpt-step-{saved.step}").state == "ready"
    (plan,) = site.rows(FinetunePlan, job_id)
    assert 1 <= plan.device_seconds <= plan.seconds


def test_time_of_earlier_claims_counts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = site.submit(monkeypatch, early_stopping={"max_seconds": 1000})
    trains, site.inline.elsewhere = site.inline.elsewhere, lambda _task, queue, _arguments: queue == Queue.FINETUNE
    site.inline.until(lambda: site.inline.job(job_id).state == JobState.RUNNING)
    with site.inline.db.write() as session:
        session.get_one(FinetunePlan, job_id).seconds = 1000.0
    site.inline.elsewhere = trains

    (job,) = site.inline.drain(job_id)

    assert [error["code"] for error in job.errors or []] == ["time_limit"]
    assert site.rows(FinetuneStep, job_id) == []


def test_job_that_takes_too_much_memory_fails_after_a_checkpoint(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = site.submit(monkeypatch, early_stopping={"max_memory_bytes": 1000})

    (job,) = site.inline.drain(job_id)

    (error,) = job.errors or []
    assert (job.state, error["code"]) == (JobState.FAILED, "memory_limit")
    assert error["message"] == "A step took more than the 1000 bytes that 'early_stopping.max_memory_bytes' allows."
    assert [row.step for row in site.rows(FinetuneCheckpoint, job_id)] == [1]


def test_repeatedly_dying_trainer_fails_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINER", '{"die_at": 5, "always": true}')
    job_id = site.submit(monkeypatch)

    (job,) = site.inline.drain(job_id)

    assert job.state == JobState.FAILED
    assert [error["code"] for error in job.errors or []] == ["trainer_died"]
    assert "the machine may have too little memory" in (job.errors or [{}])[0]["message"]


def test_checkpoint_that_was_changed_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, _ = running_trainer(site, monkeypatch)
    site.inline.until(lambda: site.count(FinetuneCheckpoint, job_id) > 0)
    with site.inline.db.write() as session:
        jobs.pause(session, session.get_one(Job, job_id), actor="test")
    site.inline.until(lambda: freed(site, job_id))
    last = max(site.rows(FinetuneCheckpoint, job_id), key=lambda row: row.step)
    site.inline.storage.put(f"{last.location}/optimizer.pt", b"other moments")
    with site.inline.db.write() as session:
        jobs.resume(session, session.get_one(Job, job_id), actor="test")

    (job,) = site.inline.drain(job_id)

    assert [error["code"] for error in job.errors or []] == ["checkpoint_damaged"]


def test_full_storage_holds_the_job_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, _ = running_trainer(site, monkeypatch, 0.05)
    free: Callable[[], int | None] = lambda: 0  # noqa: E731
    with monkeypatch.context() as full:
        full.setattr(site.worker.storage, "free", free)
        full.setattr(site.worker.storage, "put", _full)
        site.inline.until(lambda: site.inline.job(job_id).waiting_for == "disk")

    assert site.inline.job(job_id).state == JobState.RUNNING


def _full(_path: str, _data: bytes) -> None:
    from jobs.errors import StorageFull

    raise StorageFull


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", ["workers.engines.training"])
def test_tiny_model_is_trained_while_all_is_killed(site: Site, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    from tests.support import tiny_llama

    tiny_llama.write(site.base)

    assert_kills_lose_nothing(site, monkeypatch, module, 2, timeout=300.0)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", ["workers.engines.training"])
def test_repeated_training_has_same_losses_and_files(site: Site, tmp_path: Path, module: str) -> None:
    """`nightmill models reproduce` of a tiny model that trl trains, on the same machine."""
    from tests.support import tiny_llama

    tiny_llama.write(site.base)
    config = site.inline.config
    with running_app(tmp_path, config.database_url, models_file=config.models_file) as app, serve(app) as url:
        key = make_key(app)
        client = OpenAI(base_url=f"{url}/v1", api_key=key)
        file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 2}}}
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=7, method=method)
        site.inline.drain(job.id, timeout=300)
        model = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
        assert model is not None
        words = ["models", "reproduce", model, "--url", url, "--api-key", key, "--json"]
        with ThreadPoolExecutor(1) as pool:
            repeated = pool.submit(CliRunner().invoke, cli, words)
            site.inline.until(repeated.done, timeout=300)

    assert repeated.result().exit_code == 0, repeated.result().output
    report = json.loads(repeated.result().stdout)
    assert report["steps"] == [STEPS, STEPS]
    assert (report["first_different_step"], report["max_loss_difference"]) == (None, 0.0)
    assert (report["different_files"], report["not_the_same"]) == ([], [])
