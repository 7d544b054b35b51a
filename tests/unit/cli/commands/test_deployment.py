"""`nightmill status`, `logs` and `down` on data folders as `up` leaves them."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from cli.commands import deployment
from cli.main import app
from cli.up.folder import DataFolder
from cli.up.service import LogFile
from jobs.platform import processes
from jobs.security.sign_in import exchange, links_folder
from jobs.timings import Timings

#: Ends on SIGTERM in good order, and says so. With an argument it ignores the signal.
GUARD = """
import pathlib, signal, sys
def stop(*_):
    pathlib.Path("stopped").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1:] else stop)
print("up", flush=True)
signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path)
    folder.make()
    (tmp_path / "operator.key").write_text("nm_key\n")
    return folder


@pytest.fixture
def guard(folder: DataFolder) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that holds the folder and waits for SIGTERM."""
    with subprocess.Popen([sys.executable, "-c", GUARD], cwd=folder.path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        own(folder, process.pid, processes.start_time(process.pid) or 0)
        yield process
        process.kill()


def own(folder: DataFolder, pid: int, started: int, host: str = "") -> None:
    words = (pid, started, processes.boot_id(), host or processes.hostname())
    (folder.path / "up.lock").write_text(" ".join(map(str, words)))
    one = {"name": "web", "pid": pid, "restarts": 2, "state": "running", "started": started, "ending": "exit code 3"}
    folder.write_run({"url": "http://127.0.0.1:1", "flower_url": None, "pid": pid, "processes": [one]})


def call(verb: str, folder: DataFolder, *options: str) -> Any:
    return CliRunner().invoke(app, [verb, "--data-dir", str(folder.path), *options])


def test_status_shows_deployment_and_process_states(folder: DataFolder, guard: "subprocess.Popen[bytes]") -> None:
    told = call("status", folder)
    found = json.loads(call("status", folder, "--json").stdout)

    assert told.exit_code == 0
    assert f"{folder.path}: running (pid {guard.pid})" in told.stdout
    assert "API: http://127.0.0.1:1/v1 (no answer)" in told.stdout
    assert "exit code 3" in told.stdout
    assert (found["state"], found["processes"][0]["restarts"], found["api"]) == ("running", 2, None)


@pytest.mark.usefixtures("guard")
def test_status_names_the_phase_of_each_model_that_loads(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = {"queue": "gpu.generate", "model": "tiny", "phase": "compiling", "since": time.time() - 65}
    monkeypatch.setattr("cli.up.readiness.look", lambda _url: {"status": "ready", "loading": [loading]})

    assert "gpu.generate: loading tiny (compiling), 1 min" in call("status", folder).stdout


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.up.readiness.console_path", lambda url: "/console/" if url == "http://127.0.0.1:1" else "")


@pytest.mark.usefixtures("guard", "console")
def test_console_prints_a_fresh_link_each_time(folder: DataFolder) -> None:
    plain = call("console", folder).stdout.strip()
    as_json = json.loads(call("console", folder, "--json").stdout)["url"]

    tokens = [link.removeprefix("http://127.0.0.1:1/console/#token=") for link in (plain, as_json)]
    assert [exchange(folder.path, token, 900) for token in tokens] == ["nm_key"] * 2


@pytest.mark.usefixtures("guard", "console")
def test_console_opens_a_browser_without_the_token_in_its_command_line(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)
    link = call("console", folder, "--open").stdout.strip()
    page = Path(opened[0].removeprefix("file://"))
    content, mode = page.read_text(), page.stat().st_mode & 0o777
    failed = call("console", folder, "--open")

    assert "token" not in opened[0]
    assert f'url={link}"' in content
    assert mode == 0o600
    assert (failed.exit_code, "no browser could be opened" in str(failed.exception)) == (1, True)
    assert "#token=" in failed.stdout


def test_console_needs_a_deployment_with_a_console(folder: DataFolder, guard: "subprocess.Popen[bytes]") -> None:
    unbuilt = call("console", folder)
    guard.kill()
    guard.wait()
    ended = call("console", folder)

    assert (unbuilt.exit_code, ended.exit_code) == (1, 1)
    assert "serves no console" in str(unbuilt.exception)
    assert "nothing runs in" in str(ended.exception)
    assert list(links_folder(folder.path).iterdir()) == []


def test_status_tells_a_start_a_stop_and_a_kill_apart(folder: DataFolder, guard: "subprocess.Popen[bytes]") -> None:
    folder.run_file.unlink()
    starting = call("status", folder)
    own(folder, guard.pid, 0)  # who has its pid now began at another time
    killed = call("status", folder)
    folder.run_file.unlink()
    stopped = call("status", folder)

    assert [one.exit_code for one in (starting, killed, stopped)] == [1, 1, 1]
    assert ": starting" in starting.stdout
    assert ": killed" in killed.stdout
    assert "http://" not in killed.stdout
    assert ": stopped" in stopped.stdout


def test_status_of_a_folder_where_nothing_was_ever_started_names_the_option(tmp_path: Path) -> None:
    told = call("status", DataFolder(tmp_path / "none"))

    assert told.exit_code == 1
    assert ": never started" in told.stdout
    assert "--data-dir" in told.stdout
    assert not (tmp_path / "none").exists()


def test_down_ends_the_supervisor_in_good_order_and_waits(folder: DataFolder, guard: "subprocess.Popen[bytes]") -> None:
    told = call("down", folder)

    assert told.exit_code == 0
    assert (folder.path / "stopped").exists()
    assert psutil.Process(guard.pid).status() == psutil.STATUS_ZOMBIE
    assert guard.wait() == 0
    again = call("down", folder)
    assert again.exit_code == 1
    assert "nothing runs in" in str(again.exception)
    assert "--data-dir" in str(again.exception)


def test_down_does_not_signal_process_with_reused_pid(folder: DataFolder, guard: "subprocess.Popen[bytes]") -> None:
    own(folder, guard.pid, 1)

    assert call("down", folder).exit_code == 1
    assert guard.poll() is None
    assert not (folder.path / "stopped").exists()


def test_down_says_on_which_host_a_shared_folder_is_used(folder: DataFolder, guard: "subprocess.Popen[bytes]") -> None:
    own(folder, guard.pid, processes.start_time(guard.pid) or 0, host="another")

    told = call("down", folder)

    assert told.exit_code == 1
    assert "host another" in str(told.exception)
    assert guard.poll() is None


def test_logs_show_last_lines_of_all_processes_or_named_process(folder: DataFolder) -> None:
    for name in ("web", "gpu"):
        (folder.logs / f"{name}.log").write_text("".join(f"{name} {number}\n" for number in range(30)))

    every = call("logs", folder, "--lines", "2").stdout.splitlines()
    one = call("logs", folder, "web").stdout.splitlines()

    assert every == ["       gpu | gpu 28", "       gpu | gpu 29", "       web | web 28", "       web | web 29"]
    assert one == [f"web {number}" for number in range(10, 30)]
    assert call("logs", folder, "web", "-n", "0").stdout == ""


def test_logs_of_a_process_that_is_not_there_name_those_that_are(folder: DataFolder) -> None:
    (folder.logs / "web.log").touch()

    told = call("logs", folder, "wbe")

    assert told.exit_code == 1
    assert "there are web" in str(told.exception)


def test_logs_are_followed_across_truncation_until_interrupt(
    folder: DataFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder.logs / "web.log"
    path.write_text("of an earlier run\n")
    log = LogFile(path)
    written = iter(["a first line\n", "short\n"])

    class Writing(threading.Event):
        """Write a line at each wait, each time into a file that was cut; then Ctrl-C."""

        def wait(self, timeout: float | None = None) -> bool:
            try:
                path.write_text(next(written))
            except StopIteration:
                signal.raise_signal(signal.SIGINT)
            return super().wait(0)

    monkeypatch.setattr(deployment.threading, "Event", Writing)
    deployment._follow({"web": log}, Timings())

    assert capsys.readouterr().out.splitlines() == ["a first line", "short"]
