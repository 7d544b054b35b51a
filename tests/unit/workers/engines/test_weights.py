"""Which weights a name means: what changes them changes the words, and nothing else does."""

import os
from pathlib import Path
from typing import Any

import pytest

from jobs.fleet.models_file import Model
from tests.unit.workers.engines.test_router import NOWHERE, registry
from workers.engines.endpoints import Endpoint
from workers.engines.fake import FakeEngine
from workers.engines.http import HttpEngine
from workers.engines.model_folders import identity_of
from workers.engines.router import Router


def model(engine: str = "embed", **facts: Any) -> Model:
    return Model.model_validate({"name": "m", "engine": engine, "source": {"packaged": "all-minilm-l6-v2"}, **facts})


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


async def test_a_model_that_a_server_shows_is_not_pinned_down_whatever_its_name(tmp_path: Path) -> None:
    endpoint = Endpoint(NOWHERE, found=frozenset({"mini", "other"}))
    router = Router([HttpEngine([endpoint], timeout=1.0)], registry(tmp_path))

    assert router.identity("mini") is None
    assert router.identity("other") is None
