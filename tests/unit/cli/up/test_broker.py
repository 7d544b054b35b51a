"""Where the embedded broker listens, and what becomes of its file when it is broken."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from cli.errors import CliError
from cli.up import broker


def test_the_socket_is_in_the_data_folder() -> None:
    assert broker.socket_path(Path("/srv/nightmill")) == Path("/srv/nightmill/valkey.sock")
    assert broker.broker_url(Path("/srv/nightmill")) == "redis+socket:///srv/nightmill/valkey.sock"


def test_a_folder_with_a_long_path_gets_a_private_folder_for_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setattr("tempfile.tempdir", short)

        broker.command(folder)

        path = broker.socket_path(folder)
        assert len(os.fsencode(path)) <= 107
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_socket_folder_of_other_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    broker.socket_path(folder).parent.symlink_to(tmp_path)

    with pytest.raises(CliError, match="belongs to somebody else"):
        broker.command(folder)


def test_the_server_keeps_an_append_only_file_and_never_evicts(tmp_path: Path) -> None:
    words = broker.command(tmp_path)

    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--port"] == "0"


def test_no_broker_does_not_answer(tmp_path: Path) -> None:
    assert not broker.answers(tmp_path)


def test_broken_broker_data_is_set_aside(tmp_path: Path) -> None:
    kept = tmp_path / "broker" / "appendonlydir"
    kept.mkdir(parents=True)
    (kept / "appendonly.aof.manifest").write_text("nonsense")

    broker.set_aside(tmp_path)

    assert not kept.exists()
    assert [path.read_text() for path in (tmp_path / "broker").glob("broken-*/*")] == ["nonsense"]
