"""Which deployment a command means that names none, and what is believed of one that was killed."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.client.server import connect
from cli.errors import CliError
from cli.up import deployments
from cli.up.effective import effective
from cli.up.folder import DataFolder
from jobs.platform import processes

Make = Callable[..., DataFolder]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which the command runs, with an own state folder and an empty environment."""
    for name in [name for name in os.environ if name.startswith("NIGHTMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    deployments._say_chosen.cache_clear()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a data folder as `up` leaves it: locked by this process, unless words of its `up.lock` are given."""

    def made(name: str, *, runs: bool = True, **owner: object) -> DataFolder:
        folder = DataFolder(tmp_path / name)
        folder.make()
        (folder.path / "operator.key").write_text("nm_key\n")
        host, pid, started = processes.me()
        words = {"pid": pid, "started": started, "boot_id": processes.boot_id(), "host": host, **owner}
        (folder.path / "up.lock").write_text(" ".join(map(str, words.values())))
        if runs:
            folder.write_run({"url": f"http://{name.replace('/', '.')}", "api_key": "nm_key", "pid": words["pid"]})
        return folder

    return made


def test_last_started_deployment_is_found_from_any_folder(make: Make) -> None:
    for name in ("first", "last"):
        deployments.remember(make(name))

    with connect(None, None, None) as server:
        assert server.url == "http://last"
    assert effective().data_dir.name == "last"


def test_named_deployment_takes_precedence(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    deployments.remember(make("last"))
    other = make("other").path

    assert effective(data_dir=other).data_dir == other
    monkeypatch.setenv("NIGHTMILL_DATA_DIR", str(other))
    assert effective().data_dir == other


def test_local_deployment_takes_precedence_while_running(
    make: Make, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployments.remember(make("last"))
    here = make("here/.nightmill")

    assert effective().data_dir == here.path
    (here.path / "up.lock").unlink()
    assert effective().data_dir.name == effective().data_dir.name == "last"
    assert capsys.readouterr().err.count("--data-dir names another") == 1


def test_ended_local_deployment_precedes_last_ended_deployment(make: Make) -> None:
    deployments.remember(make("last", pid=1, started=0))

    assert effective().data_dir.name == "last"
    here = make("here/.nightmill", pid=1, started=0)
    assert effective().data_dir == here.path


KILLED = {
    "its pid belongs to another process": {"pid": 1, "started": 0},
    "its pid is free": {"pid": 1 << 30},
    "the machine was started again": {"boot_id": "00000000-0000-0000-0000-000000000000"},
}


@pytest.mark.parametrize("owner", KILLED.values(), ids=KILLED)
def test_run_file_of_killed_deployment_provides_no_key(make: Make, owner: dict[str, object]) -> None:
    folder = make("last", **owner)
    deployments.remember(folder)

    assert folder.read_run()["api_key"] == "nm_key"
    assert folder.live_run() == {}
    with pytest.raises(CliError, match=r"nothing runs in .*/last; .* --data-dir"):
        connect(None, None, None)


def test_starting_deployment_ignores_run_file_of_predecessor(make: Make) -> None:
    folder = make("last")
    folder.write_run({"url": "http://earlier", "pid": os.getpid() + 1})

    assert folder.is_running
    assert folder.live_run() == {}


def test_run_file_of_other_host_in_shared_folder_is_live(make: Make) -> None:
    folder = make("shared", host="another")

    assert folder.live_run()["url"] == "http://shared"
    assert not folder.is_running


def test_missing_folders_are_forgotten_and_list_is_bounded(make: Make, tmp_path: Path) -> None:
    for number in range(30):
        deployments.remember(make(f"of-{number}"))
    (tmp_path / "of-28").rename(tmp_path / "moved")
    deployments.remember(make("of-27"))

    found = [one.path.name for one in deployments.remembered_folders()]
    assert found[:3] == ["of-27", "of-29", "of-26"]
    assert len(found) < 30
    assert stat.S_IMODE((tmp_path / "state" / "nightmill").stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["/a'])
def test_a_list_that_cannot_be_read_remembers_nothing(make: Make, tmp_path: Path, text: str) -> None:
    deployments.remember(make("last"))
    (tmp_path / "state" / "nightmill" / "deployments.json").write_text(text)

    assert deployments.remembered_folders() == []
    assert effective().data_dir == tmp_path / "here" / ".nightmill"


def test_unwritable_home_is_tolerated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")

    deployments.remember(make("last"))

    assert deployments.remembered_folders() == []


def test_the_list_is_in_the_home_where_the_variable_is_not_absolute(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))

    deployments.remember(make("last"))

    listed = json.loads((tmp_path / ".local" / "state" / "nightmill" / "deployments.json").read_text())
    assert listed == [str(tmp_path / "last")]
