"""A training that is repeated: its request, and what its report says of losses, files, tensors and circumstances."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.numpy import save_file

from cli.client import reproduction
from cli.client.server import Server, connect
from cli.errors import CliError
from jobs.finetuning.tables import FinetunePlan
from tests.support.tuning_requests import create, registered, upload
from tests.support.web import make_key, running_app, serve
from tests.unit.api.conftest import client_of

ASKED = {"suffix": "support", "seed": 5, "training": {"rank": 8, "scheduler": "cosine"}, "peft": "auto"}


@pytest.fixture
def web(tmp_path: Path, sqlite_url: str) -> Iterator[FastAPI]:
    with running_app(tmp_path, sqlite_url) as web:
        yield web


@pytest.fixture
def client(web: FastAPI) -> TestClient:
    return client_of(web, make_key(web))


@pytest.fixture
def server(web: FastAPI) -> Iterator[Server]:
    with serve(web) as url, connect(url, make_key(web), None) as server:
        yield server


def trained(web: FastAPI, client: TestClient, **fields: Any) -> tuple[dict[str, Any], str]:
    """Return a job that has been planned, and the name of its model."""
    job = create(client, **ASKED, **fields)
    numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    counts = {"rows": 12, "validation_rows": 0, "tokens": 99, "steps": 6}
    with web.state.services.db.write() as session:
        session.add(FinetunePlan(job_id=job["id"], seconds=1.0, device_seconds=1.0, **numbers, **counts))
    return job, registered(web, job)


def test_request_has_the_numbers_that_auto_stood_for(web: FastAPI, client: TestClient) -> None:
    more = {"validation_file": upload(client), "validation": {"type": "file"}, "early_stopping": {"patience": 3}}
    job, name = trained(web, client, **more)
    planned = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()

    body = reproduction.request_of(client.get(f"/v1/model_versions/{name}").json(), planned)
    made = client.post("/v1/fine_tuning/jobs", json=body)

    assert made.status_code == 200, made.text
    numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert made.json()["hyperparameters"] == planned["hyperparameters"] == numbers
    same = ("model", "training_file", "validation_file", "validation", "early_stopping", "training", "seed")
    assert {field: made.json()[field] for field in same} == {field: planned[field] for field in same}
    assert (made.json()["peft"], made.json()["user_provided_suffix"]) == ("lora", "support")


def test_erased_data_are_refused_before_a_job_is_made(web: FastAPI, client: TestClient) -> None:
    job, name = trained(web, client)
    version = client.get(f"/v1/model_versions/{name}").json()

    with pytest.raises(CliError, match="erased; nothing was submitted"):
        reproduction.request_of(version | {"data_erased": True}, job)


def test_report_names_first_step_and_file_that_differ(web: FastAPI, client: TestClient, server: Server) -> None:
    versions = [client.get(f"/v1/model_versions/{trained(web, client)[1]}").json() for _ in range(2)]
    for version, digest, torch in zip(versions, "ab", ("2.9.0", "2.9.1"), strict=True):
        version["manifest"]["files"] = {"config.json": "same", "tokenizer.json": digest}
        version["manifest"]["run"] = {"versions": {"torch": torch}, "threads": 2}

    report = reproduction.report_of(server, *versions, [{1: 4.0, 2: 3.0, 3: 2.5}, {1: 4.0, 2: 3.25}])

    assert (report["steps"], report["first_different_step"], report["max_loss_difference"]) == ([3, 2], 2, 0.25)
    assert (report["different_files"], report["max_tensor_differences"]) == (["tokenizer.json"], {})
    assert [row["fact"] for row in report["not_the_same"]] == ["versions.torch"]
    assert list(reproduction.describe_report(report)) == [
        "steps: 3 and 2",
        "loss: differs from step 2 on, by 0.25 at most",
        "files that differ: tokenizer.json",
        "not the same: versions.torch: 2.9.0 and 2.9.1",
    ]


def test_report_of_same_training_finds_no_difference(web: FastAPI, client: TestClient, server: Server) -> None:
    version = client.get(f"/v1/model_versions/{trained(web, client)[1]}").json()

    report = reproduction.report_of(server, version, version, [{1: 4.0}, {1: 4.0}])

    assert list(reproduction.describe_report(report)) == [
        "steps: 1 and 1",
        "loss: the same in each step that both have",
        "files that differ: none",
        "data, options, libraries and hardware are the same",
    ]
    unknown = reproduction.report_of(server, version, version, [{}, {1: 4.0}])
    assert "loss: no step is known of both" in reproduction.describe_report(unknown)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_largest_difference_of_tensors_is_found(tmp_path: Path, dtype: str) -> None:
    first = {"a": np.zeros((2, 3), dtype), "b": np.arange(4, dtype=dtype), "empty": np.zeros((0, 3), dtype)}
    second = {**first, "b": first["b"] + np.array([0, 0, 0.5, 0], dtype)}
    for name, tensors in (("first", first), ("second", second)):
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})

    assert reproduction.compare_safetensors(tmp_path / "first", tmp_path / "second") == 0.5
    assert reproduction.compare_safetensors(tmp_path / "first", tmp_path / "first") == 0.0


def test_tensors_of_bfloat16_are_compared(tmp_path: Path) -> None:
    for name, bits in (("first", 0x3F80), ("second", 0x4000)):  # 1.0 and 2.0
        header = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header + bits.to_bytes(2, "little"))

    assert reproduction.compare_safetensors(tmp_path / "first", tmp_path / "second") == 1.0


def test_tensors_of_other_shapes_are_not_comparable(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, "float32")}, tmp_path / "first")
    save_file({"a": np.zeros(3, "float32")}, tmp_path / "second")

    assert reproduction.compare_safetensors(tmp_path / "first", tmp_path / "second") is None


def test_file_without_tensors_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(b"no tensors at all")

    with pytest.raises(CliError, match="no file of tensors"):
        reproduction.compare_safetensors(tmp_path / "first", tmp_path / "first")
