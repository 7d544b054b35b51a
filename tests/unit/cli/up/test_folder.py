"""The data folder: one owner, private files, and nothing of another boot is believed."""

import json
import stat
from contextlib import closing
from pathlib import Path

import pytest

from cli.errors import CliError
from cli.up.background import run_detached
from cli.up.folder import DataFolder
from jobs.platform import processes


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    return folder


def test_second_lock_is_refused_with_pid_of_owner(folder: DataFolder) -> None:
    with closing(folder.lock()), pytest.raises(CliError, match=r"already running on .* \(pid \d+\)"):
        folder.lock()


def test_second_background_start_reports_first_and_changes_nothing(folder: DataFolder) -> None:
    errors = folder.logs / "up.err"
    errors.write_text("of the first")
    with closing(folder.lock()):
        folder.write_run({"url": "http://127.0.0.1:8000"})
        with pytest.raises(CliError, match=r"already running on .* \(http://127.0.0.1:8000/v1, pid \d+\); stop it"):
            run_detached(folder, "http://127.0.0.1:8000", lambda: 1)

    assert errors.read_text() == "of the first"


def test_released_folder_lock_can_be_reacquired(folder: DataFolder) -> None:
    folder.lock().close()

    with closing(folder.lock()) as again:
        assert again.is_open


def test_the_run_file_is_private_and_replaced_as_a_whole(folder: DataFolder) -> None:
    folder.write_run({"url": "http://a"})
    inode = folder.run_file.stat().st_ino
    folder.write_run({"url": "http://b"})

    assert folder.read_run()["url"] == "http://b"
    assert folder.run_file.stat().st_ino != inode
    assert stat.S_IMODE(folder.run_file.stat().st_mode) == 0o600
    assert [path.name for path in folder.path.glob(".*")] == []


def test_a_run_file_that_is_cut_short_says_nothing(folder: DataFolder) -> None:
    folder.run_file.write_text('{"url": "http')

    assert folder.read_run() == {}


def test_flowers_password_is_made_once_and_private(folder: DataFolder) -> None:
    first = folder.flower_password()

    assert folder.flower_password() == first
    assert len(first) >= 20
    assert stat.S_IMODE((folder.path / "flower.password").stat().st_mode) == 0o600


@pytest.mark.parametrize("boot", ["another boot", None])
def test_sessions_of_another_boot_are_nobodys(folder: DataFolder, boot: str | None) -> None:
    mine = processes.read(1)
    assert mine is not None
    run = {"boot_id": boot, "processes": [{"pid": mine.session or 1, "started": mine.started}]}
    folder.run_file.write_text(json.dumps(run))

    assert folder.kill_leftovers() == 0
    assert not folder.run_file.exists()
