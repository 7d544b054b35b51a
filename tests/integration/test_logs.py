"""The log of a pool of processes, from its start to its end: one JSON object a line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.system import eventually

pytestmark = pytest.mark.verify
ROOT = Path(__file__).parents[2]


def test_every_line_of_a_pool_and_its_children_is_json(tmp_path: Path) -> None:
    environment = os.environ | {"NIGHTMILL_DATA_DIR": str(tmp_path), "NIGHTMILL_LOG_LEVEL": "INFO"}
    subprocess.run([sys.executable, "-m", "jobs.bootstrap"], cwd=ROOT, env=environment, check=True, timeout=60)
    log = tmp_path / "cpu.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "workers", "cpu"]
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: log.read_text().count("worker_started") >= 2, 120, "its children are there")
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    finally:
        worker.kill()

    lines = [line for line in log.read_text().splitlines() if line]
    assert [line for line in lines if not line.startswith("{")] == []
    assert {"worker_started"} <= {json.loads(line)["event"] for line in lines}
