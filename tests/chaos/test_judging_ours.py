"""The judgement of a run's answers and files finds each violation."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from openai.types import VectorStoreSearchResponse as Found

from tests.chaos.journal import Journal
from tests.chaos.judging_ours import contents, judge_broken, judge_mirror, own_failures, unexcused
from tests.chaos.load import Broken
from tests.support.source_oracle import Mirror, Version

pytestmark = pytest.mark.verify

_FAULT = '{"error": {"message": "The engine gave no answer: connection reset", "code": "engine_error"}}'
_OURS = '{"error": {"message": "The engine gave no answer.", "code": "engine_error"}}'


class _Files:
    """Stand for the files of a client, where one document has its second version."""

    def __init__(self, content: bytes, left: Sequence[str]) -> None:
        self.files, self._content, self._left = self, content, left

    def content(self, _: str) -> Any:
        return SimpleNamespace(content=self._content)

    def retrieve(self, name: str) -> None:
        if name not in self._left:
            response = httpx2.Response(404, request=httpx2.Request("GET", "http://x"))
            raise openai.NotFoundError("No such file", response=response, body=None)


@pytest.mark.parametrize(
    ("content", "left", "violation"),
    [
        (b"pear", (), ""),
        (b"plum", (), "file-2 has 4 bytes that are not the 4 of the folder"),
        (b"pear", ["file-1"], "file-1 is there still"),
    ],
)
def test_files_that_are_not_the_folder_are_found(content: bytes, left: Sequence[str], violation: str) -> None:
    old = Version("a.txt", "b", 4, b"apple", "file-1", gone=True)
    mirror = Mirror("mirror", Path(), versions=[old, Version("a.txt", "c", 4, b"pear", "file-2")])
    client: Any = _Files(content, left)

    found = "; ".join(contents(client, mirror))

    assert violation in found
    assert bool(found) is bool(violation)


def _judged_mirror(mirror: Mirror, struck: Sequence[str], **more: Any) -> str:
    load = SimpleNamespace(
        source_client=SimpleNamespace(mirror=mirror, **more), client=SimpleNamespace(sdk=more.get("sdk"))
    )
    campaign: Any = SimpleNamespace(load=load, journal=Journal(1), struck=struck)
    judge_mirror(campaign)
    return "; ".join(campaign.journal.violations)


def test_a_keeper_that_never_had_a_source_is_found() -> None:
    assert "never had a source" in _judged_mirror(Mirror("mirror", Path()), ["gpu"])
    assert not _judged_mirror(Mirror("mirror", Path()), [])  # nobody has fed it


class _Store(_Files):
    """Two indexes, of which the second shows nothing."""

    def __init__(self, chunk: Found) -> None:
        super().__init__(b"pear", ())
        self.vector_stores: Any = SimpleNamespace(files=self)
        self.chunk, self.used = chunk, ["one"]

    def list(self, *_: Any, **__: Any) -> Any:
        return [SimpleNamespace(id="file-2", status="completed")]

    def get(self, path: str, **_: Any) -> Any:
        if path.endswith("/indexes"):
            return {"data": [{"id": name, "status": status, "missing": 0} for name, status in _INDEXES]}
        item = {"key": "a.txt", "file_id": "file-2", "previous_file_id": None}
        return {"data": [item if "/items" in path else {"id": "file-2", "status": "completed"}]}

    def post(self, path: str, **_: Any) -> None:
        self.used.append(path.split("/")[-2])

    def find(self, words: str = "") -> Sequence[Found]:
        return [self.chunk] if words or self.used[-1] == "one" else []


_INDEXES = ("one", "active"), ("two", "previous")


def test_every_index_is_searched_and_active_index_is_restored() -> None:
    chunk = Found.construct(
        file_id="file-2", filename="x", content=[{"type": "text", "text": "cccccccc000"}], chunk={"start": 0}
    )
    store = _Store(chunk)
    mirror = Mirror("mirror", Path(), "vs_1", "src_1", [Version("a.txt", "c" * 8, 1, b"pear", "file-2")])

    found = _judged_mirror(mirror, ["gpu"], sdk=store, find_patiently=store.find)

    assert found == "two: mirror: a.txt (cccccccc) is not found, and is due"
    assert store.used == ["one", "two", "one"]


@pytest.mark.parametrize(
    ("at", "said", "ended", "passes"),
    [
        (100.0, _FAULT, [95.0], True),
        (100.0, _FAULT, [20.0, 99.5, 300.0], True),
        (100.0, _FAULT, [100.4], True),  # who watches it saw it a moment later
        (100.0, _FAULT, [], False),
        (100.0, _FAULT, [20.0, 300.0], False),
        (100.0, _OURS, [95.0], False),
    ],
)
def test_only_the_end_of_an_engine_excuses_an_answer_that_says_it_gave_none(
    at: float, said: str, ended: list[float], passes: bool
) -> None:
    assert (not unexcused([Broken(at, said)], ended, 15)) is passes


def test_faults_of_both_projects_clients_and_of_logs_are_reported() -> None:
    clients = [SimpleNamespace(broken=[Broken(at, f"{at} {_FAULT}")]) for at in (100.0, 200.0)]
    load = SimpleNamespace(clients=clients)
    system = SimpleNamespace(errors=lambda: {"gpu": ["interactive_failed"]})
    journal = Journal(1)
    campaign: Any = SimpleNamespace(engines=(), struck=(), load=load, system=system, journal=journal, patience=1)

    judge_broken(campaign)

    assert journal.violations == [f"100.0 {_FAULT}", f"200.0 {_FAULT}", "gpu: interactive_failed"]


def test_a_worker_that_broke_over_a_question_is_found_in_its_log() -> None:
    ours, others = '{"level": "error", "event": "interactive_failed"}', '{"level": "error", "event": "x"}'

    assert own_failures({"gpu": [others, ours], "web": [others]}) == [f"gpu: {ours}"]
