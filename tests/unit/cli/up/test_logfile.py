"""Logs are kept short without their writer's help, and are shown line by line."""

import errno
from pathlib import Path

import pytest

from cli.up import service
from cli.up.service import LogFile


def test_whole_lines_are_shown_once(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_text("of an earlier run\n")
    log = LogFile(path)

    with path.open("a") as writer:
        writer.write("one\ntwo\nhal")
        writer.flush()
        first = log.fresh()
        writer.write("f\n")
        writer.flush()
        second = log.fresh()

    assert (first, second, log.fresh()) == (["one", "two"], ["half"], [])


def test_oversized_log_is_rotated_and_old_lines_are_preserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_BYTES", 10)
    path = tmp_path / "web.log"
    log = LogFile(path)

    with path.open("a") as writer:
        writer.write("long enough\n")
        writer.flush()
        log.rotate()
        writer.write("next\n")

    assert path.read_text() == "next\n"
    assert path.with_name("web.log.1").read_text() == "long enough\n"
    assert log.fresh() == ["next"]


def test_tail_returns_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_text("\n".join("abcdef"))

    assert LogFile(path).tail(2) == "e\nf"
    assert LogFile(tmp_path / "none.log").tail(2) == ""


def test_a_log_that_can_not_be_copied_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(service, "MAX_BYTES", 10)
    monkeypatch.setattr("shutil.copyfile", full)
    path = tmp_path / "web.log"
    path.write_text("long enough\n")

    LogFile(path).rotate()

    assert path.read_text() == ""
    assert not path.with_name("web.log.1").exists()
