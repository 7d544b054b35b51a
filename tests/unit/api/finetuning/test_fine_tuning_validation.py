"""The dry run of a fine-tuning job over HTTP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.finetuning import examination
from jobs.finetuning.examination import BaseUnavailable, DatasetFindings, ExaminationFailed, ExaminationTask, Part
from jobs.finetuning.tables import FinetunePlan, FinetuneStep
from tests.support import tiny_llama
from tests.support.tuning_requests import BASE, ROW, add_worker, upload
from tests.support.web import make_key
from tests.unit.api.conftest import client_of

PATH = "/v1/fine_tuning/jobs/validate"


def examine(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={"model": BASE, "training_file": upload(client)} | fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_good_file_is_counted_and_nothing_is_created(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ExaminationTask] = []

    def answer(question: ExaminationTask) -> DatasetFindings:
        asked.append(question)
        return DatasetFindings(
            training=Part("a", 1, 100), validation=Part("b", 1, 25), tokens=500, longest=9, warnings=["w"]
        )

    monkeypatch.setattr(examination, "examine", answer)

    found = examine(client, hyperparameters={"n_epochs": 2}, validation={"type": "holdout", "fraction": 0.2}, seed=3)

    assert found == {
        "object": "fine_tuning.validation",
        "valid": True,
        "model": BASE,
        "errors": {"object": "list", "data": []},
        "errors_truncated": False,
        "warnings": ["w"],
        "examples": 100,
        "validation_examples": 25,
        "tokens": 500,
        "trained_tokens": 1000,
        "longest_example": 9,
        "steps": 100,
        "hyperparameters": {"n_epochs": 2, "batch_size": 2, "learning_rate_multiplier": 1.0},
        "estimate": None,
        "measuring_job": None,
    }
    assert (asked[0].split, asked[0].fraction, asked[0].seed, asked[0].store) == ("holdout", 0.2, 3, False)
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_estimate_of_seconds_and_memory_comes_from_measuring_job(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        examination, "examine", lambda _: DatasetFindings(training=Part("a", 1, 100), tokens=500, longest=9)
    )
    asked: dict[str, Any] = {"hyperparameters": {"n_epochs": 2}, "training_file": upload(client)}

    unmeasured = examine(client, measure=True, **asked)
    assert (unmeasured["measuring_job"], unmeasured["estimate"]) == (None, None)
    assert unmeasured["warnings"] == ["No worker that trains is running: seconds and memory were not measured."]
    add_worker(app, "finetune-1", None)

    job_id = examine(client, measure=True, **asked)["measuring_job"]

    job = client.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (job["dry_run"], job["hyperparameters"]["n_epochs"], job["training_file"]) == (
        True,
        2,
        asked["training_file"],
    )
    measured(app, job_id)
    shown = examine(client, measure=True, **asked)
    assert shown["measuring_job"] is None
    assert shown["estimate"] == {
        "seconds": 10,
        "memory_bytes": 3000,
        "measured_steps": 3,
        "batch_size": 4,
        "measured_at": 2,
    }
    assert examine(client, peft="full", **asked)["estimate"] is None
    assert examine(client, peft="full", **asked)["measuring_job"] is None


def measured(app: FastAPI, job_id: str) -> None:
    """Write what a job that is trained for three steps leaves: 50, 100 and 150 tokens a second."""
    plan = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0}
    plan |= {"rows": 100, "validation_rows": 0, "tokens": 500, "steps": 50}
    step = {"epoch": 0.1, "train_loss": 1.0, "learning_rate": 1e-4, "created_at": 2.0}
    with app.state.services.db.write() as session:
        session.add(FinetunePlan(job_id=job_id, **plan))
        for n in (1, 2, 3):
            figures = {"tokens_per_second": 50.0 * n, "memory_bytes": 1000 * n}
            session.add(FinetuneStep(job_id=job_id, step=n, **step, **figures))


def test_errors_are_reported_with_line_and_param(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"code": "empty_array", "message": "Empty.", "line": 3, "param": "training_file.messages"}
    monkeypatch.setattr(examination, "examine", lambda _question: DatasetFindings(errors=[error], truncated=True))

    found = examine(client)

    assert (found["valid"], found["errors"]["data"], found["errors_truncated"]) == (False, [error], True)
    assert (found["examples"], found["hyperparameters"]) == (None, None)


def test_a_training_of_too_many_steps_is_an_error_of_the_hyperparameters(
    make_app: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    monkeypatch.setattr(examination, "MAX_STEPS", 199)
    client = client_of(app, make_key(app))
    monkeypatch.setattr(examination, "examine", lambda _question: DatasetFindings(training=Part("a", 1, 100)))

    found = examine(client, hyperparameters={"n_epochs": 2, "batch_size": 1})

    (error,) = found["errors"]["data"]
    assert (found["valid"], error["code"], error["param"]) == (False, "too_many_steps", "hyperparameters")
    assert error["message"].startswith("The training would take 200 steps, and 199 are allowed.")
    assert examine(client, hyperparameters={"n_epochs": 1, "batch_size": 1})["valid"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(ExaminationFailed(), 400, "validation_gave_up"), (BaseUnavailable("away"), 503, "model_unavailable")],
)
def test_failed_examination_is_refused_with_its_code(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    def fail(_question: ExaminationTask) -> DatasetFindings:
        raise error

    monkeypatch.setattr(examination, "examine", fail)

    answer = client.post(PATH, json={"model": BASE, "training_file": upload(client)})

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_an_unknown_file_is_named(client: TestClient) -> None:
    error = client.post(PATH, json={"model": BASE, "training_file": "file-x"}).json()["error"]

    assert (error["code"], error["param"]) == ("file_not_found", "training_file")


@pytest.mark.verify
def test_a_file_is_examined_by_the_tokenizer_of_its_base(client: TestClient, tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "base")
    (tmp_path / "models.yaml").write_text(f"models:\n  tiny: {{source: {{path: {base}}}, engine: vllm}}\n")

    good = examine(client, model="tiny")
    bad = client.post("/v1/files", files={"file": ("t", ROW * 3 + b"{}\n")}, data={"purpose": "fine-tune"}).json()
    refused = examine(client, model="tiny", training_file=bad["id"])

    assert (good["valid"], good["examples"], good["steps"]) == (True, 12, 36)
    assert good["tokens"] == 12 * good["longest_example"]
    assert good["warnings"] == [
        "11 rows of the training file are duplicates of earlier ones: lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12."
    ]
    assert [(error["line"], error["param"]) for error in refused["errors"]["data"]] == [(4, "training_file.messages")]
