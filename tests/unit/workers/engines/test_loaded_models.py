"""The versions of the models that a process serves: what they were loaded from, and when they count as the same."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.fleet.models_file import Registry
from jobs.registry.base_versions import LoadedModel
from tests.support.fake_engine import FakeEngine
from workers.engines.loaded_models import describe_models
from workers.engines.model_folders import package_version_of
from workers.engines.router import Router

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def loaded(folder: Path, source: str, engine: str = "vllm", more: str = "") -> LoadedModel:
    """Return the version of the model `own` whose source the models file has."""
    file = folder / "models.yaml"
    file.write_text(f"models:\n  own: {{source: {source}, engine: {engine}{more}}}\n", encoding="utf-8")
    [model] = describe_models(Router([FakeEngine(models=("own", "another"))], Registry.read(file)))
    return model


def weights(folder: Path, value: float, *, at: float = 1e9) -> Path:
    """Return a folder with a model of three megabytes, one of whose last tensor's values is `value`."""
    folder.mkdir(parents=True)
    tensors = {"first": np.zeros((1 << 19,), np.float32), "last": np.zeros((1 << 18,), np.float32)}
    tensors["last"][-1] = value
    save_file(tensors, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    os.utime(folder / "model.safetensors", (at, at))
    return folder


def test_packaged_model_is_its_package_with_the_version(tmp_path: Path) -> None:
    model = loaded(tmp_path, "{packaged: smollm2-135m-instruct}", more=", license: apache-2.0")

    version = package_version_of("smollm2-135m-instruct")
    assert (model.source, model.license) == (f"smollm2-135m-instruct {version}", "apache-2.0")
    assert version


def test_model_of_the_hub_is_its_commit(tmp_path: Path) -> None:
    first = loaded(tmp_path, f"{{repo: org/model, revision: {COMMIT}}}")
    second = loaded(tmp_path, f"{{repo: org/model, revision: {COMMIT[::-1]}}}")

    assert first.source == f"org/model@{COMMIT}"
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize(("value", "is_same"), [(0.0, True), (1.0, False)])
def test_folder_is_same_version_anywhere_only_while_weights_stay(tmp_path: Path, value: float, is_same: bool) -> None:
    first = loaded(tmp_path, f"{{path: {weights(tmp_path / 'here' / 'model', 0.0)}}}")
    second = loaded(tmp_path, f"{{path: {weights(tmp_path / 'there' / 'model', value, at=2e9)}}}")

    assert (first.source, first.license) == (second.source, second.license) == ("model", "mit")
    assert (first.fingerprint == second.fingerprint) is is_same


def test_model_of_a_server_is_its_name_there_and_shows_no_address(tmp_path: Path) -> None:
    model = loaded(tmp_path, "{urls: ['http://10.0.0.7:8000/v1'], model: theirs}", engine="http")

    assert (model.engine, model.source) == ("http", "theirs")
