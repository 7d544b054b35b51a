"""`nightmill finetune` against a web process in which nobody works: what it sends, and what it shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from cli.commands import finetune
from cli.main import app
from jobs import programs
from jobs.clock import now
from jobs.finetuning import examination, training_events
from jobs.finetuning.examination import DatasetFindings, Part
from jobs.finetuning.payload import FineTuning
from jobs.finetuning.tables import FinetuneCheckpoint
from jobs.ledger import ledger
from jobs.ledger.states import JobState
from jobs.ledger.tables import Job
from tests.support import tuned_adapters
from tests.support.tuning_requests import add_worker
from tests.support.web import make_key, running_app, serve
from tests.unit.api.finetuning.test_fine_tuning_validation import measured

MODEL = "smollm2-135m-instruct"


class Client:
    """The command, with a key of a project."""

    def __init__(self, web: FastAPI, url: str) -> None:
        self.web, self.where = web, ["--url", url, "--api-key", make_key(web)]

    def __call__(self, command: str, *words: str) -> Result:
        return CliRunner().invoke(app, ["finetune", command, *words, *self.where])

    def told(self, command: str, *words: str) -> list[dict[str, Any]]:
        """Return what a command prints as JSON Lines."""
        done = self(command, *words, "--json")
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    def end(self, job_id: str) -> None:
        """Two steps of training, a checkpoint, and a failure."""
        with self.web.state.services.db.write() as session:
            for step, loss in ((1, 2.0), (2, 1.0)):
                data = {"step": step, "total_steps": 2, "train_loss": loss, "valid_loss": None}
                training_events.record_metrics(session, job_id, f"Step {step}/2: training loss={loss:.2f}", data)
            session.add(
                FinetuneCheckpoint(
                    id="ftckpt_1", job_id=job_id, step=2, location="training/1", sha256="0" * 64, bytes=1,
                    metrics={"train_loss": 1.0}, keeps_optimizer=True, created_at=now(),
                )
            )  # fmt: skip
            error = {"code": "not_finite", "message": "The loss is not finite.", "line": None, "param": None}
            ledger.move(session, job_id, JobState.QUEUED, JobState.FAILED, actor="test", values={"errors": [error]})


@pytest.fixture
def client(tmp_path: Path, sqlite_url: str) -> Iterator[Client]:
    with running_app(tmp_path, sqlite_url, data_dir=tmp_path / "data") as web, serve(web) as url:
        yield Client(web, url)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": []}\n')
    return str(path)


def submit(client: Client, rows: str, *words: str) -> str:
    done = client("submit", rows, "--model", MODEL, "--no-wait", *words)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_submit_uploads_files_and_creates_job_with_options(client: Client, rows: str) -> None:
    job_id = submit(
        client, rows, "--epochs", "2", "--seed", "0", "--suffix", "s", "--holdout", "0.2", "--metadata", "a=b",
        "--max-seconds", "60", "--general", rows,
    )  # fmt: skip

    (job,) = client.told("list")
    assert (job["id"], job["seed"], job["metadata"]) == (job_id, 0, {"a": "b"})
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job["validation"] == {"type": "holdout", "fraction": 0.2}
    assert job["early_stopping"]["max_seconds"] == 60
    assert job["general_file"].startswith("file-")
    assert job["training_file"].startswith("file-")


def test_an_uploaded_file_is_named_by_its_id(client: Client, rows: str) -> None:
    submit(client, rows)
    file_id = client.told("list")[0]["training_file"]

    submit(client, file_id, "--validation", rows, "--method", "dpo")

    newest = client.told("list")[0]
    assert newest["training_file"] == file_id
    assert newest["validation_file"] not in (None, file_id)
    assert newest["method"]["type"] == "dpo"


def test_a_job_is_paused_resumed_and_cancelled(client: Client, rows: str) -> None:
    job_id = submit(client, rows)

    told = [client(verb, job_id).stdout.split() for verb in ("pause", "resume", "cancel")]

    assert told == [[job_id, "paused"], [job_id, "validating_files"], [job_id, "cancelled"]]


def test_a_job_is_watched_to_its_end(client: Client, rows: str) -> None:
    job_id = submit(client, rows)
    client.end(job_id)

    done = client("watch", job_id)

    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].endswith(f"Created fine-tuning job: {job_id}")
    assert [line.partition("  ")[2] for line in lines[2:4]] == [
        "Step 1/2: training loss=2.00",
        "Step 2/2: training loss=1.00",
    ]
    assert lines[-1] == "training loss    2.000 █▁ 1.000"
    assert str(done.exception) == f"{job_id} failed: The loss is not finite."


def test_the_curve_and_the_checkpoints_are_shown(client: Client, rows: str) -> None:
    job_id = submit(client, rows)
    empty = client("curve", job_id).stdout
    client.end(job_id)

    assert empty == "no step has been trained yet\n"
    assert client("curve", job_id).stdout == "training loss    2.000 █▁ 1.000\n"
    assert [step["train_loss"] for step in client.told("curve", job_id)] == [2.0, 1.0]
    (checkpoint,) = client.told("checkpoints", job_id)
    assert checkpoint["fine_tuned_model_checkpoint"].endswith(":ckpt-step-2")
    assert "1.0000" in client("checkpoints", job_id).stdout


def test_a_long_curve_is_as_wide_as_a_line(client: Client) -> None:
    steps = [{"train_loss": 1000.0 - n, "valid_loss": 2.0} for n in range(1000)]

    training, validation = finetune.drawn(steps)

    assert training == f"training loss    1000.000 {training.split()[3]} 1.000"
    assert (len(training.split()[3]), training.split()[3][0], training.split()[3][-1]) == (60, "█", "▁")
    assert validation.split()[3] == "▁" * 60


@pytest.fixture
def tuned(client: Client, rows: str) -> dict[str, str]:
    """Make a job with a result, and a checkpoint of another job; return their ids and names."""
    services = client.web.state.services
    names = {"checkpoint_job": submit(client, rows), "job": submit(client, rows)}
    with services.db.write() as session:
        for key in ("job", "checkpoint_job"):
            names[f"{key}_model"] = FineTuning.model_validate(session.get_one(Job, names[key]).payload).result
        session.get_one(Job, names["job"]).state = JobState.SUCCEEDED
    client.end(names["checkpoint_job"])
    tuned_adapters.tuned_model(services.db, services.storage, names["job_model"], base=MODEL, job_id=names["job"])
    checkpoint = f"{names['checkpoint_job_model']}:ckpt-step-2"
    tuned_adapters.tuned_model(services.db, services.storage, checkpoint, job_id=names["checkpoint_job"], step=2)
    return names


def weights(folder: Path) -> str:
    return (folder / "adapter_model.safetensors").read_text()


def test_a_result_is_exported_by_its_job_or_its_name(client: Client, tuned: dict[str, str], tmp_path: Path) -> None:
    for number, asked in enumerate((tuned["job"], tuned["job_model"])):
        output = tmp_path / f"out-{number}"
        (told,) = client.told("export", asked, "--output", str(output))

        assert told == {"model": tuned["job_model"], "base": MODEL, "kind": "adapter", "path": str(output)}
        assert weights(output) == f"the weights of {tuned['job_model']}"
        assert {file.name for file in output.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "manifest.json",
        }  # fmt: skip


def test_a_checkpoint_is_exported_by_its_step(client: Client, tuned: dict[str, str], tmp_path: Path) -> None:
    name = f"{tuned['checkpoint_job_model']}:ckpt-step-2"
    for number, asked in enumerate(("checkpoint_job", "checkpoint_job_model")):
        output = tmp_path / f"out-{number}"
        client.told("export", tuned[asked], "--checkpoint", "2", "--output", str(output))

        assert weights(output) == f"the weights of {name}"


def test_a_job_without_such_a_model_names_its_checkpoints(
    client: Client, tuned: dict[str, str], tmp_path: Path
) -> None:
    output = str(tmp_path / "out")

    none = client("export", tuned["checkpoint_job"], "--output", output)
    other = client("export", tuned["checkpoint_job"], "--checkpoint", "3", "--output", output)

    assert "its status is failed; steps with a checkpoint, for --checkpoint: 2" in str(none.exception)
    assert "no checkpoint of step 3" in str(other.exception)


def test_a_file_that_was_changed_is_not_exported(client: Client, tuned: dict[str, str], tmp_path: Path) -> None:
    services = client.web.state.services
    location = tuned_adapters.location_of(services.db, tuned["job_model"])
    size = services.storage.size(f"{location}/adapter_model.safetensors")
    services.storage.put(f"{location}/adapter_model.safetensors", b"x" * size)

    done = client("export", tuned["job"], "--output", str(tmp_path / "out"))

    assert "bytes" in str(done.exception)
    assert not list(tmp_path.glob("out*"))


def test_a_folder_with_files_is_not_written_to(client: Client, tuned: dict[str, str], tmp_path: Path) -> None:
    done = client("export", tuned["job"], "--output", str(tmp_path))

    assert "no empty folder" in str(done.exception)


def test_an_adapter_is_merged_into_the_base(
    client: Client, tuned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(_config: object, adapter: Path, base: str, output: Path, folder: Path | None) -> str:
        (output / "model.safetensors").write_text(f"{base} {folder} {weights(adapter)}")
        return "" if folder else "it does not fit"

    monkeypatch.setattr(programs, "merge_adapter", merge)
    output = tmp_path / "out"

    failed = client("export", tuned["job"], "--merge", "--output", str(output))
    (told,) = client.told("export", tuned["job"], "--merge", "--base", "base", "--output", str(output))

    assert "was not merged: it does not fit" in str(failed.exception)
    assert told["kind"] == "model"
    assert (output / "model.safetensors").read_text() == f"{MODEL} base the weights of {tuned['job_model']}"
    assert not list(tmp_path.glob("out.*"))


def found(errors: list[dict[str, Any]]) -> DatasetFindings:
    part = None if errors else Part("0" * 64, 100, 12)
    return DatasetFindings(errors=errors, warnings=["1 rows are duplicates."], training=part, tokens=120, longest=11)


def test_dry_run_prints_training_size_and_creates_no_job(
    client: Client, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "examine", lambda _question: found([]))

    done = client("submit", rows, "--model", MODEL, "--dry-run", "--epochs", "2")

    assert (done.exit_code, done.stdout) == (0, "12 examples, 120 tokens, 24 steps\n")
    assert done.stderr.splitlines() == [
        "1 rows are duplicates.",
        "No worker that trains is running: seconds and memory were not measured.",
    ]
    assert client.told("list") == []


def test_dry_run_starts_measuring_job_for_missing_estimate(
    client: Client, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "examine", lambda _question: found([]))
    add_worker(client.web, "finetune-1", None)
    ended: list[str] = []

    def await_end(_server: Any, job_id: str, _print: Any) -> dict[str, Any]:
        measured(client.web, job_id)
        ended.append(job_id)
        return {"id": job_id, "status": "succeeded"}

    monkeypatch.setattr(finetune, "await_end", await_end)

    done = client("submit", rows, "--model", MODEL, "--dry-run", "--epochs", "2")

    assert (done.exit_code, done.stdout) == (
        0,
        "12 examples, 120 tokens, 24 steps, about 2 s and 0.00 GB\n",
    )
    (job,) = client.told("list")
    assert ([job["id"]], job["dry_run"]) == (ended, True)


def test_a_dry_run_of_bad_files_names_their_lines(client: Client, rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"code": "empty_array", "message": "Empty.", "line": 3, "param": "training_file.messages"}
    monkeypatch.setattr(examination, "examine", lambda _question: found([error]))

    done = client("submit", rows, "--model", MODEL, "--dry-run")

    assert done.exit_code == 1
    assert "line 3: Empty. (training_file.messages)" in done.stderr
    assert str(done.exception) == "the files are not valid; errors: 1"


def test_options_that_contradict_each_other_create_nothing(client: Client, rows: str) -> None:
    both = client("submit", rows, "--model", MODEL, "--validation", rows, "--holdout", "0.1")
    missing = client("submit", "nowhere.jsonl", "--model", MODEL)

    assert (both.exit_code, missing.exit_code) == (1, 1)
    assert "nothing was created" in str(missing.exception)
    assert client.told("list") == []
