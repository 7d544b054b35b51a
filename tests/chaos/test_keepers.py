"""The keeper of a folder judges what it is told: a deployment made by hand tells it what must not be."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai.types import VectorStoreSearchResponse as Found

from tests.chaos.journal import Journal
from tests.chaos.keepers import Keeper


class _Client:
    """Makes a store and a source, and then answers `said`."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.found: list[Found] = []
        self.away = 0  # so many sources are not made
        stores = SimpleNamespace(create=lambda **_: SimpleNamespace(id="vs_1"), search=lambda *_, **__: self.found)
        self.sdk: Any = SimpleNamespace(vector_stores=stores, post=self._post, get=self._get)

    def look(self, get: Callable[[Any], Any], _: float = 5.0) -> Any:
        return get(self.sdk)

    def _post(self, *_: Any, **__: Any) -> Any:
        if self.away:
            self.away -= 1
            raise openai.OpenAIError("away")
        return {"id": "src_1", "file_batch_id": "ing_1"}

    def _get(self, path: str, **_: Any) -> Any:
        return self.said[path.removeprefix("/vector_stores/vs_1")]


@pytest.fixture
def client() -> _Client:
    return _Client()


@pytest.fixture
def keeper(client: _Client, tmp_path: Path) -> Keeper:
    """Whose first sync goes on."""
    made: Any = client
    keeper = Keeper(made, Journal(1), random.Random(1), tmp_path, lambda: None)
    keeper.step(feeding=True)
    return keeper


def _chunk(n: int, stem: str) -> Found:
    return Found.construct(
        file_id=f"file-{n}", filename="x", content=[{"type": "text", "text": f"{stem}000"}], chunk={"start": 0}
    )


def test_a_search_that_shows_as_much_as_it_may_is_judged_too(client: _Client, keeper: Keeper) -> None:
    stem = keeper.mirror.versions[0].stem
    client.found = [_chunk(0, stem)] * 50
    keeper.read()
    assert not keeper.journal.violations

    client.found = [*[_chunk(0, stem)] * 49, _chunk(1, "g" * 8)]
    keeper.read()

    assert "shows words of ['gggggggg']" in "; ".join(keeper.journal.violations)
    assert keeper.searches == 2
