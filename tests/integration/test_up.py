"""`nightmill up` with a Procfile of small scripts: what it starts, restarts, stops, and what is left of it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.system import command

pytestmark = pytest.mark.verify

ROOT = Path(__file__).parent.parent.parent

RELEASE = """
import os, pathlib
(pathlib.Path(os.environ["NIGHTMILL_DATA_DIR"]) / "operator.key").write_text("nm_operator")
"""
WEB = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"database": "ok", "workers": {}}')
http.server.HTTPServer(("127.0.0.1", int(os.environ["NIGHTMILL_PORT"])), Handler).serve_forever()
"""
WORKER = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["NIGHTMILL_DATA_DIR"])
def stop(*_):
    with (folder / "stopped").open("a") as log:
        log.write(sys.argv[1] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
engine = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)", str(folder)]
subprocess.Popen(engine, start_new_session=True)
while True:
    time.sleep(0.05)
"""
PROCFILE = """
release: python release.py
web: python web.py
one: python worker.py one
two: python worker.py two
"""


class Up:
    """Run one `nightmill up` over a folder of scripts."""

    def __init__(self, folder: Path, procfile: str = PROCFILE, **environment: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        for name, text in {"release": RELEASE, "web": WEB, "worker": WORKER}.items():
            (folder / f"{name}.py").write_text(text)
        (folder / "Procfile").write_text(procfile)
        self.environment = {**os.environ, "NIGHTMILL_BROKER_URL": "memory://", **environment}
        self.process = self.start()

    def start(self, **options: Any) -> "subprocess.Popen[str]":
        command = self.command()
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, **options)
        return self.process

    def command(self) -> list[str]:
        arguments = ["--data-dir", str(self.data), "--port", "0", "--procfile", str(self.folder / "Procfile")]
        return [sys.executable, "-m", "cli", "up", *arguments]

    def run_file(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):
            return dict(json.loads((self.data / "run.json").read_text()))
        return {"processes": []}

    def table(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.run_file()["processes"]}

    def pids(self) -> dict[str, int | None]:
        return {name: one["pid"] for name, one in self.table().items()}

    def wait_until_running(self, *names: str) -> dict[str, int]:
        expected = names or ("web", "one", "two")
        _eventually(lambda: all(self.pids().get(name) for name in expected))
        workers = (self.folder / "Procfile").read_text().count("worker.py")
        _eventually(lambda: len(self.engines()) == workers)
        return {name: pid for name, pid in self.pids().items() if pid}

    def engines(self) -> list[int]:
        return [process.pid for process in self.family() if "time.sleep(600)" in " ".join(command(process))]

    def family(self) -> list[psutil.Process]:
        """Every live process that works for this data folder, whoever its parent is."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                marked = process.environ().get("NIGHTMILL_SUPERVISED") == str(self.data)
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def supervisor(self) -> int:
        return psutil.Process(self.process.pid).children()[0].pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def _eventually(true: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)  # noqa: TID251 (nothing tells when)


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    made: list[Up] = []

    def make(procfile: str = PROCFILE, **environment: str) -> Up:
        made.append(Up(tmp_path, procfile, **environment))
        return made[-1]

    yield make
    for up in made:
        up.process.kill()
        up.process.wait()
        for process in up.family():  # a test that failed may have left some
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if up.process.stdout:
            up.process.stdout.close()


@pytest.fixture
def up(make_up: Callable[..., Up]) -> Up:
    return make_up()


def test_it_starts_every_line_and_says_so_in_a_private_file(up: Up) -> None:
    up.wait_until_running()

    run = up.run_file()
    assert stat.S_IMODE((up.data / "run.json").stat().st_mode) == 0o600
    assert run["api_key"] == "nm_operator"
    assert run["pid"] == up.process.pid
    assert [(one["name"], one["restarts"], one["state"]) for one in run["processes"]] == [
        ("web", 0, "running"),
        ("one", 0, "running"),
        ("two", 0, "running"),
    ]
    assert run["url"].startswith("http://127.0.0.1:")


def test_every_process_leads_a_session_of_its_own(up: Up) -> None:
    pids = up.wait_until_running().values()

    assert {os.getsid(pid) for pid in pids} == set(pids)


def test_dead_process_is_restarted_and_its_leftovers_are_killed(up: Up) -> None:
    before = up.wait_until_running()
    engines = set(up.engines())

    os.kill(before["one"], signal.SIGKILL)
    _eventually(lambda: up.pids().get("one") not in {None, before["one"]})
    _eventually(lambda: len(up.engines()) == 2)

    assert up.table()["one"]["restarts"] == 1
    assert up.pids()["two"] == before["two"]
    assert len(set(up.engines()) & engines) == 1


def test_a_table_that_can_not_be_written_stops_nothing_and_is_written_later(up: Up) -> None:
    before = up.wait_until_running()
    in_the_way = up.data / f".run.json.{up.supervisor()}"
    in_the_way.mkdir()

    os.kill(before["one"], signal.SIGKILL)
    _eventually(lambda: "the process table can't be written" in (up.data / "logs" / "up.log").read_text())
    in_the_way.rmdir()

    _eventually(lambda: up.pids().get("one") not in {None, before["one"]})
    assert up.pids()["two"] == before["two"]


def test_a_process_that_keeps_failing_is_started_ever_more_slowly(make_up: Callable[..., Up]) -> None:
    up = make_up("release: python release.py\nbad: python -c 'raise SystemExit(3)'\n")
    _eventually(lambda: up.table().get("bad", {}).get("restarts", 0) >= 3)

    up.stop()

    log = (up.data / "logs" / "up.log").read_text().splitlines()
    told = [line for line in log if "bad ended (exit code 3); starting it again in" in line]
    assert [line.rpartition(" in ")[2] for line in told[:3]] == ["0.2 s", "0.4 s", "0.8 s"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_reverse_order_and_leaves_nothing(up: Up, number: int) -> None:
    up.wait_until_running()

    code = up.stop(number)

    assert code == 0
    assert up.family() == []
    assert (up.data / "stopped").read_text().split() == ["two", "one"]
    assert not (up.data / "run.json").exists()


def test_the_api_stops_before_the_workers_that_it_finishes_its_answers_with(make_up: Callable[..., Up]) -> None:
    lines = "one: python worker.py one", "web: python worker.py web", "two: python worker.py two"
    up = make_up("\n".join(("release: python release.py", *lines)))
    up.wait_until_running()

    assert up.stop() == 0
    assert (up.data / "stopped").read_text().split() == ["web", "two", "one"]


@pytest.mark.parametrize("victim", ["guard", "supervisor"])
def test_killing_it_leaves_nothing_running(up: Up, victim: str) -> None:
    up.wait_until_running()

    os.kill(up.process.pid if victim == "guard" else up.supervisor(), signal.SIGKILL)
    _eventually(lambda: up.family() == [], seconds=5)

    assert up.process.wait(30) != 0
    _eventually(lambda: not (up.data / "run.json").exists(), seconds=5)


def test_restart_right_after_kill_succeeds(up: Up) -> None:
    before = up.wait_until_running()

    up.process.kill()
    up.process.communicate()
    up.start()
    _eventually(lambda: up.pids().get("two") not in {None, before["two"]})
    after = up.wait_until_running()

    assert not set(before.values()) & set(after.values())


def test_leftovers_of_a_killed_guard_and_supervisor_are_killed_at_the_next_start(up: Up) -> None:
    up.wait_until_running()
    engines = set(up.engines())

    for pid in (up.supervisor(), up.process.pid):  # the order leaves the guard no time
        os.kill(pid, signal.SIGKILL)
    up.process.communicate()
    up.start()
    _eventually(lambda: up.run_file().get("pid") == up.process.pid)
    up.wait_until_running()

    assert not engines & set(up.engines())


def test_second_supervisor_on_same_folder_is_refused(up: Up) -> None:
    before = up.wait_until_running()
    first = up.process

    second = up.start()
    told, _ = second.communicate(timeout=20)
    up.process = first

    assert second.returncode == 1
    assert f"already running on {up.data} (" in told
    assert f"pid {first.pid})" in told
    assert up.pids() == before


def test_a_release_step_that_fails_stops_the_start_with_its_output(make_up: Callable[..., Up]) -> None:
    up = make_up("""release: python -c 'raise SystemExit("no database")'\nweb: python web.py\n""")

    told, _ = up.process.communicate(timeout=20)

    assert up.process.returncode == 1
    assert "the release step failed (exit code 1)" in told
    assert "no database" in told
    assert up.family() == []


def test_the_key_is_written_to_no_pipe_and_no_log(up: Up) -> None:
    up.wait_until_running()
    log = up.data / "logs" / "up.log"
    _eventually(lambda: "ready: http" in log.read_text())

    up.stop()
    told, _ = up.process.communicate()

    assert f"API key: in {up.data}/run.json" in told
    for text in (told, *(path.read_text() for path in (up.data / "logs").iterdir())):
        assert "nm_operator" not in text


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "cli", "up", "--data-dir", str(tmp_path), "--port", port]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr


def test_a_wrong_models_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models: {x: {engine: warp}}")
    command = [sys.executable, "-m", "cli", "up", "--data-dir", str(tmp_path / "data"), "--models", str(models)]

    done = subprocess.run([*command, "--port", "0"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith(f"nightmill: {models}")
    assert not (tmp_path / "data" / "nightmill.db").exists()


def test_files_of_child_processes_are_owner_only(make_up: Callable[..., Up]) -> None:
    up = make_up("release: python release.py\none: python worker.py one\n")
    up.wait_until_running("one")

    up.stop()

    assert stat.S_IMODE((up.data / "stopped").stat().st_mode) == 0o600


def test_the_embedded_broker_is_supervised_and_private(make_up: Callable[..., Up]) -> None:
    up = make_up("release: python release.py\none: python worker.py one\n", NIGHTMILL_BROKER_URL="")
    pids = up.wait_until_running("broker", "one")

    os.kill(pids["broker"], signal.SIGKILL)
    _eventually(lambda: up.pids().get("broker") not in {None, pids["broker"]})
    _eventually((up.data / "valkey.sock").exists)

    assert psutil.Process(up.pids()["broker"]).net_connections("inet") == []
    assert stat.S_IMODE((up.data / "valkey.sock").stat().st_mode) == 0o700
    assert psutil.Process(pids["one"]).environ()["NIGHTMILL_BROKER_URL"] == f"redis+socket://{up.data}/valkey.sock"
    assert up.stop() == 0
    assert up.family() == []


def test_only_flower_process_sees_flower_password(make_up: Callable[..., Up]) -> None:
    up = make_up("release: python release.py\none: python worker.py one\nflower: python worker.py two\n")
    pids = up.wait_until_running("one", "flower")

    seen = {name: psutil.Process(pid).environ().get("FLOWER_BASIC_AUTH") for name, pid in pids.items()}

    password = (up.data / "flower.password").read_text().strip()
    assert seen == {"one": None, "flower": f"nightmill:{password}"}


class Detached(Up):
    """`nightmill up --detach`, which has returned, and the commands that find it from another folder."""

    def start(self, **options: Any) -> "subprocess.Popen[str]":
        self.environment |= {"XDG_STATE_HOME": str(self.folder / "state"), "PYTHONPATH": str(ROOT)}
        self.told = self.call(*self.command()[3:], "--detach")
        ended = subprocess.Popen(["true"], text=True)  # the process that a test of a terminal's `up` looks at
        ended.wait()
        return ended

    def call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        (self.folder / "elsewhere").mkdir(exist_ok=True)
        command, folder = [sys.executable, "-m", "cli", *words], self.folder / "elsewhere"
        return subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture
def detached(tmp_path: Path) -> Iterator[Detached]:
    up = Detached(tmp_path)
    yield up
    for process in up.family():
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_background_deployment_is_found_shown_and_stopped_from_another_folder(detached: Detached) -> None:
    assert detached.told.returncode == 0, detached.told.stderr
    assert f"ready: {detached.run_file()['url']}/v1" in detached.told.stdout
    assert "nm_operator" not in detached.told.stdout
    detached.wait_until_running()

    status = detached.call("status")
    assert status.returncode == 0
    assert f"{detached.data}: running" in status.stdout
    assert "web" in detached.call("logs", "-n", "1").stdout + status.stdout
    again = detached.call(*detached.command()[3:], "--detach")
    assert again.returncode == 1
    assert "already running" in again.stderr

    down = detached.call("down")
    assert (down.returncode, down.stdout) == (0, f"stopped what ran in {detached.data}\n")
    assert sorted((detached.data / "stopped").read_text().split()) == ["one", "two"]
    assert detached.family() == []
    assert detached.call("status").returncode == 1


def test_killed_background_deployment_is_not_taken_for_running(detached: Detached) -> None:
    pids = detached.wait_until_running()
    guard = detached.run_file()["pid"]
    for pid in (guard, psutil.Process(guard).children()[0].pid, *pids.values()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _eventually(lambda: not psutil.pid_exists(guard))
    (detached.data / "run.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": guard, "processes": []}))

    assert f"{detached.data}: killed" in detached.call("status").stdout
    jobs = detached.call("jobs")
    assert jobs.returncode == 1
    assert f"nothing runs in {detached.data}" in jobs.stderr
    assert "--data-dir" in jobs.stderr
    assert detached.call("down").returncode == 1


def test_a_start_in_the_background_that_fails_says_why(detached: Detached) -> None:
    detached.call("down")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = detached.call(*detached.command()[3:], "--detach", "--port", str(taken.getsockname()[1]))

    assert told.returncode == 1
    assert "is in use" in told.stderr
