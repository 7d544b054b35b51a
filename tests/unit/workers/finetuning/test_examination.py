"""Rows of training files are checked in a confined process, and it is said what happened to it."""

import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs.finetuning import examination as port
from jobs.finetuning.examination import ExaminationFailed, ExaminationTask
from jobs.platform import children
from jobs.platform.children import ChildFailed, ChildLimits
from tests.support import tiny_llama
from workers.engines.model_folders import ModelUnavailable
from workers.finetuning import examination
from workers.finetuning.examination import ConfinedRows
from workers.finetuning.examination_child import BadRow, GoodRow, Load, Read
from workers.sandbox.child import Child

LIMITS = ChildLimits(seconds=100, cpu_seconds=100, memory_bytes=8 << 30)
READ = Read("supervised", timed=False)
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.write(tmp_path_factory.mktemp("base"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Yield the confined processes that were started."""
    started: list[Child] = []

    class Noted(Child):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            started.append(self)

    monkeypatch.setattr(examination, "Child", Noted)
    yield started
    for process in started:
        if process._process.stdout and not process._process.stdout.closed:
            process.end()


def test_rows_are_checked_in_a_process_that_can_read_the_base_alone(base: Path, started: list[Child]) -> None:
    rows = ConfinedRows(Load(str(base), None), LIMITS)
    content = b"".join(json.dumps(row).encode() + b"\n" for row in [ROW, {}] * 400)

    checked = list(rows.read(READ, io.BytesIO(content)))
    with closing(rows.read(READ, io.BytesIO(content * 50))) as more:  # not read to the end: the process is replaced
        first = next(more)
    again = list(rows.read(READ, io.BytesIO(content)))

    assert [type(row) for row in checked] == [GoodRow, BadRow] * 400
    assert (checked[:2], checked) == ([first, checked[1]], again)
    assert rows.has_template
    assert [process._policy.readable for process in started] == [(str(base),)] * 2


def test_an_error_of_the_storage_is_none_of_the_file(base: Path, started: list[Child]) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError("The storage is away.")

    with pytest.raises(OSError, match="away"):
        list(ConfinedRows(Load(str(base), None), LIMITS).read(READ, Broken()))


def test_killed_process_is_reported_as_signal_not_timeout(base: Path, started: list[Child]) -> None:
    rows = ConfinedRows(Load(str(base), None), LIMITS)
    os.kill(started[0]._process.pid, signal.SIGKILL)

    with pytest.raises(ChildFailed, match="its process was ended by SIGKILL"):
        list(rows.read(READ, io.BytesIO(json.dumps(ROW).encode())))


def test_folder_without_tokenizer_raises_model_unavailable(tmp_path: Path, started: list[Child]) -> None:
    with pytest.raises(ModelUnavailable):
        ConfinedRows(Load(str(tmp_path), None), LIMITS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cpu_seconds": 1}, r"it used more than 1(00)? seconds of a processor"),
        ({"seconds": 1}, "it took more than 1 seconds"),
        ({"memory_bytes": 16 << 20}, "it needed more than 16 MiB of memory"),
    ],
)
def test_failed_examination_names_exceeded_limit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], reason: str
) -> None:
    (tmp_path / "t").write_bytes(json.dumps(ROW).encode() * 10)
    question = ExaminationTask(
        storage=f"file://{tmp_path}", data_dir=str(tmp_path),
        model={"name": "tiny", "engine": "vllm", "source": {"path": str(base)}}, training="t", validation=None,
        general=None, method="supervised", split=None, fraction=0.0, seed=1, max_sequence_length=None,
        cpu_seconds=100, store=False,
    )  # fmt: skip
    run = children.run
    limits = ChildLimits(**{"seconds": 100, "cpu_seconds": 100, "memory_bytes": 8 << 30} | changes)
    monkeypatch.setattr(children, "run", lambda module, given, _limits, **rest: run(module, given, limits, **rest))

    with pytest.raises(ExaminationFailed, match=rf"^The files could not be read: {reason}\.$"):
        port.examine(question)
