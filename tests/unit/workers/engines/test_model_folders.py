"""Packaged models are made once; weights have an identity."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.fleet.models_file import ModelConfig
from tests.support.fake_engine import FakeEngine
from tests.unit.workers.engines.test_router import NOWHERE, registry
from workers.engines import model_folders
from workers.engines.http.endpoints import Endpoint
from workers.engines.http.http_engine import HttpEngine
from workers.engines.model_folders import MINILM, SMOLLM2, ModelUnavailable, identity_of, materialise
from workers.engines.router import Router


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the conversion, which takes half a minute; the engine's contract test runs the real one."""
    calls: list[Path] = []

    def convert(package: Path, scratch: Path) -> None:
        assert list(package.glob("*.gguf"))
        calls.append(scratch)
        (scratch / "config.json").write_text("{}")

    monkeypatch.setattr(model_folders, "_convert", convert)
    return calls


def test_the_embedding_model_is_used_where_it_lies(tmp_path: Path) -> None:
    folder = materialise(MINILM, tmp_path)

    assert (folder / "model.safetensors").is_file()
    assert list(tmp_path.iterdir()) == []


def test_existing_model_folder_is_not_rebuilt(tmp_path: Path) -> None:
    (tmp_path / SMOLLM2).mkdir()

    assert materialise(SMOLLM2, tmp_path) == tmp_path / SMOLLM2


def test_second_conversion_reuses_existing_folder(tmp_path: Path, converted: list[Path]) -> None:
    model_folders.make_packaged_model(SMOLLM2, str(tmp_path))
    model_folders.make_packaged_model(SMOLLM2, str(tmp_path))

    assert len(converted) == 1
    assert (tmp_path / SMOLLM2 / "config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [SMOLLM2]


def test_leftover_folder_of_killed_conversion_is_removed(tmp_path: Path, converted: list[Path]) -> None:
    (tmp_path / f".{SMOLLM2}-old").mkdir()

    model_folders.make_packaged_model(SMOLLM2, str(tmp_path))

    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [SMOLLM2]


def test_a_conversion_that_fails_leaves_no_model_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")

    with pytest.raises(ModelUnavailable, match="models"):
        materialise(SMOLLM2, tmp_path / "models")


def test_an_unknown_name_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=SMOLLM2):
        materialise("gpt-oss-120b", tmp_path)


@pytest.mark.parametrize("name", [MINILM, SMOLLM2])
def test_model_without_its_package_raises_error_with_package_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _module: None)

    with pytest.raises(ModelUnavailable, match=r"the package \w+ is not installed; `nightmill doctor` names"):
        materialise(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def model(engine: str = "embed", **facts: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"name": "m", "engine": engine, "source": {"packaged": "all-minilm-l6-v2"}, **facts}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"name": "n"},
        {"engine_args": {"prompt": "query: "}},
        {"source": {"repo": "a/b", "revision": "0" * 40}},
        {"source": {"packaged": "smollm2-135m-instruct"}},
        {"engine": "http", "source": {"urls": [NOWHERE]}},
        {"engine": "vllm"},
    ],
)
def test_another_source_name_or_prompt_is_another_model(other: dict[str, Any]) -> None:
    assert identity_of(model(**other)) != identity_of(model())


@pytest.mark.parametrize(
    "other", [{"aliases": ["x"]}, {"engine_args": {"runtime": "torch", "dtype": "float32"}}, {"queue": "gpu.second"}]
)
def test_how_vectors_are_computed_and_where_is_no_part_of_it(other: dict[str, Any]) -> None:
    assert identity_of(model(**other)) == identity_of(model())


def test_of_a_generating_model_every_argument_counts() -> None:
    assert identity_of(model("vllm", engine_args={"dtype": "float32"})) != identity_of(model("vllm"))


def test_another_commit_is_another_model() -> None:
    sources = [{"repo": "a/b", "revision": digit * 40} for digit in "01"]

    assert len({identity_of(model(source=source)) for source in sources}) == 2


def test_weights_that_change_in_their_folder_are_others(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"old")
    os.utime(weights, (1, 1))
    found = {identity_of(model(source={"path": tmp_path}))}
    weights.write_bytes(b"new")
    found.add(identity_of(model(source={"path": tmp_path})))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "config.json").write_bytes(b"{}")
    found.add(identity_of(model(source={"path": tmp_path})))

    assert len(found) == 3
    assert identity_of(model(source={"path": tmp_path})) in found


async def test_a_router_knows_the_file_s_models_by_any_of_their_names(tmp_path: Path) -> None:
    router = Router([FakeEngine(("mini",))], registry(tmp_path))

    assert router.identity("text-embedding-3-small") == router.identity("mini")
    assert router.identity("nobody") is None


async def test_model_listed_by_server_has_no_identity(tmp_path: Path) -> None:
    endpoint = Endpoint(NOWHERE, listed_models=frozenset({"mini", "other"}))
    router = Router([HttpEngine([endpoint], timeout=1.0)], registry(tmp_path))

    assert router.identity("mini") is None
    assert router.identity("other") is None
