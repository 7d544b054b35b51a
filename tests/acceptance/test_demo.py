"""`nightmill demo` in its small form: the whole system, with a stub server as the engine of both batches."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.support import stub_engine

ROOT = Path(__file__).resolve().parents[2]
CHATS, DOCUMENTS = 16, 40
pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]  # eight processes start on what may be two busy cores


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[str]:
    with stub_engine.running(tmp_path / "prompts.log", "--models", "chatter,embedder", "--delay-ms", "20") as url:
        yield url


@pytest.fixture
def start(tmp_path: Path, engine: str) -> Iterator["Start"]:
    started = Start(tmp_path, engine)
    yield started
    for process in started.processes:
        process.terminate()
        process.communicate(timeout=60)


class Start:
    """Starts the demo on the stub; no model of its own is loaded."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.data = folder / "data"
        self.models = folder / "models.yaml"
        self.models.write_text("models: {}\n")
        self.engine = engine
        self.processes: list[subprocess.Popen[str]] = []

    def __call__(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cli", "demo", "--no-vllm", "--engine-url", f"{self.engine}/v1"]
        command += ["--data-dir", str(self.data), "--model", "chatter", "--embedding-model", "embedder"]
        command += ["--chats", str(CHATS), "--documents", str(DOCUMENTS), *options]
        environment = {**os.environ, "NIGHTMILL_MODELS_FILE": str(self.models)}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process


def test_demo_runs_both_batches_and_leaves_nothing_running(start: Start) -> None:
    process = start()

    shown, _ = process.communicate(timeout=240)

    assert process.returncode == 0, shown
    assert shown.count("batch.completed, verified") == 2
    assert "asked of the documents" in shown
    outputs = (start.data / "demo" / "summaries-output.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["custom_id"] for line in outputs) == sorted(f"chat-{n}" for n in range(CHATS))
    assert _processes_of(start.data) == []


def test_demo_reports_failed_embeddings_and_fails(start: Start) -> None:
    process = start("--embedding-model", "nobody-has-this")

    shown, _ = process.communicate(timeout=240)

    assert process.returncode == 1, shown
    _, _, missing = shown.partition("the batches are not complete")
    assert "embeddings: it is failed" in missing
    assert "summaries:" not in missing
    assert "the demo is not complete" in missing


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.soak) for number in (signal.SIGINT, signal.SIGTERM))],
)
def test_interrupted_demo_leaves_nothing_running(start: Start, number: signal.Signals) -> None:
    process = start()
    assert process.stdout
    _read_until(process.stdout, "created two batches")

    process.send_signal(number)
    process.wait(60)

    gone, alive = psutil.wait_procs(_processes_of(start.data), timeout=30)
    assert alive == [], gone
    assert process.returncode != 0


def _read_until(stream: IO[str], text: str) -> None:
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return
    pytest.fail("the demo ended early:\n" + "".join(lines))


def _processes_of(data: Path) -> list[psutil.Process]:
    """Everything that works on this data folder, zombies aside."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and process.pid != os.getpid()
        and (
            (process.info["environ"] or {}).get("NIGHTMILL_DATA_DIR") == str(data)
            or any(str(data) in word for word in process.info["cmdline"] or [])
        )
    ]
