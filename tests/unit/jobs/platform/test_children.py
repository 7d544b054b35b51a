"""Children that compute: what they are limited to, and what is said about those that gave no answer."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.platform import children
from jobs.platform.children import ChildFailed, ChildLimits, ChildStopped

MODULE = "tests.support.child_program"
LIMITS = ChildLimits(seconds=60, cpu_seconds=30, memory_bytes=1 << 30, answer_bytes=1 << 20)


def facts(**options: Any) -> dict[str, Any]:
    return dict(json.loads(children.run(MODULE, [b"re", b"port"], LIMITS, **options)))


def test_a_child_gives_way_is_limited_and_has_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    child = facts()

    assert (child["niceness"], child["oom_score"], child["session"]) == (children.NICENESS, 1000, True)
    assert (child["memory"], child["cpu"]) == (1 << 30, 30)
    assert "AWS_SECRET_ACCESS_KEY" not in child["names"]
    assert "AWS_SECRET_ACCESS_KEY" in facts(settings=True)["names"]


@pytest.mark.parametrize(
    ("work", "limits", "reason"),
    [
        (b"spin", {"cpu_seconds": 1}, "it used more than 1 seconds of a processor"),
        (b"sleep", {"seconds": 1}, "it took more than 1 seconds"),
        (b"allocate", {}, "it needed more than 1024 MiB of memory"),
        (b"die", {}, "its process was ended by SIGKILL, as the kernel does where memory is short"),
        (b"leave", {}, "its process ended with the status 3"),
        (b"boast", {}, "its result has more than 1 MiB"),
    ],
)
def test_failed_child_error_gives_reason(work: bytes, limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(ChildFailed) as failed:
        children.run(MODULE, [work], replace(LIMITS, **limits))

    assert str(failed.value) == reason


def test_a_child_that_is_stopped_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    started = tmp_path / "pid"

    with pytest.raises(ChildStopped):
        children.run(MODULE, [b"start ", str(started).encode()], LIMITS, stopped=started.exists)

    number = started.read_text()
    assert not number or not psutil.pid_exists(int(number)) or psutil.Process(int(number)).wait(30) is None


def test_error_in_input_iterator_ends_child() -> None:
    before = {process.pid for process in psutil.Process().children()}

    def given() -> Iterator[bytes]:
        yield b"sleep"
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        children.run(MODULE, given(), LIMITS)

    assert {process.pid for process in psutil.Process().children()} <= before


def test_a_child_may_end_before_it_has_read_everything() -> None:
    with pytest.raises(ChildFailed, match="256 MiB of memory"):
        children.run(MODULE, itertools.repeat(b"x" * (1 << 20)), replace(LIMITS, memory_bytes=256 << 20))
