"""The source_client of a folder judges answers: a deployment made by hand gives it wrong ones."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types import VectorStoreSearchResponse as Found

from tests.chaos.journal import Journal
from tests.chaos.source_client import SourceClient

pytestmark = pytest.mark.verify


class _Client:
    """Makes a store and a source, and then answers `said`."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.found: list[Found] = []
        stores = SimpleNamespace(create=lambda **_: SimpleNamespace(id="vs_1"), search=lambda *_, **__: self.found)
        self.sdk: Any = SimpleNamespace(vector_stores=stores, post=self._post, get=self._get)

    def look(self, get: Callable[[Any], Any], _: float = 5.0) -> Any:
        return get(self.sdk)

    def _post(self, *_: Any, **__: Any) -> Any:
        return {"id": "src_1", "file_batch_id": "ing_1"}

    def _get(self, path: str, **_: Any) -> Any:
        return self.said[path.removeprefix("/vector_stores/vs_1")]


@pytest.fixture
def client() -> _Client:
    return _Client()


@pytest.fixture
def source_client(client: _Client, tmp_path: Path) -> SourceClient:
    """Return a client whose first sync is running."""
    made: Any = client
    source_client = SourceClient(made, Journal(1), random.Random(1), tmp_path, lambda: None)
    source_client.step(feeding=True)
    return source_client


def _chunk(n: int, stem: str) -> Found:
    return Found.construct(
        file_id=f"file-{n}", filename="x", content=[{"type": "text", "text": f"{stem}000"}], chunk={"start": 0}
    )


def test_a_search_that_shows_as_much_as_it_may_is_judged_too(client: _Client, source_client: SourceClient) -> None:
    stem = source_client.mirror.versions[0].stem
    client.found = [_chunk(0, stem)] * 50
    source_client.read()
    assert not source_client.journal.violations

    client.found = [*[_chunk(0, stem)] * 49, _chunk(1, "g" * 8)]
    source_client.read()

    assert "shows words of ['gggggggg']" in "; ".join(source_client.journal.violations)
    assert source_client.searches == 2


def _told(status: str, items: Sequence[Any] = (), **error: str) -> dict[str, Any]:
    source = {"status": status, "file_batch_id": "ing_1", "last_error": error, "counts": {"failed": 1}}
    indexes = {"data": [{"status": "active", "file_counts": Counter()}]}
    return {"/sources/src_1": source, "/sources/src_1/items?limit=100": {"data": items}, "/indexes": indexes}


def _until_changed(client: _Client, source_client: SourceClient) -> str:
    """Change the folder until a document is gone since the running sync began; return its name."""
    client.said = _told("in_progress")
    while not (gone := [one for one in source_client.mirror.versions if one.gone]):
        source_client.step(feeding=True)
    return gone[0].name


def _settle(source_client: SourceClient) -> str:
    for _ in range(3):  # its indexes, the sync, and the next one
        source_client.step(feeding=False)
    return "; ".join(one for one in source_client.journal.violations if "is failed" in one)


def test_a_sync_that_fails_is_not_excused_by_any_change_of_the_folder(
    client: _Client, source_client: SourceClient
) -> None:
    _until_changed(client, source_client)
    client.said = _told("failed", code="server_error", message="It broke.")

    assert "It broke." in _settle(source_client)


def test_failed_sync_due_to_removed_document_is_excused(client: _Client, source_client: SourceClient) -> None:
    name = _until_changed(client, source_client)
    error = {"code": "not_readable", "message": "It cannot be read: No such file or directory."}
    client.said = _told("failed", [{"key": name, "last_change": "failed", "last_error": error}], **error)

    assert not _settle(source_client)
    assert len(source_client.syncs) > 1
