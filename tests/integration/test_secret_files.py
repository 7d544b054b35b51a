"""The first two commands of a container, told everything secret by files alone: the release step, then the API."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.services import Postgres
from tests.support.system import ROOT, eventually, free_port

pytestmark = [pytest.mark.verify, pytest.mark.postgres]


def test_release_and_web_start_with_their_database_in_a_file(postgres_server: Postgres, tmp_path: Path) -> None:
    with postgres_server.database(migrated=False) as url:
        (tmp_path / "database_url").write_text(f"{url}\n")
        (tmp_path / "broker_url").write_text("redis://:hunter2@127.0.0.1:1/0\n")  # neither of them needs it
        port = free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")},
            "NIGHTMILL_DATA_DIR": str(tmp_path / "data"),
            "NIGHTMILL_PORT": str(port),
            "NIGHTMILL_DATABASE_URL_FILE": str(tmp_path / "database_url"),
            "NIGHTMILL_BROKER_URL_FILE": str(tmp_path / "broker_url"),
        }
        options: dict[str, Any] = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
        release = subprocess.run([sys.executable, "-m", "jobs.bootstrap"], timeout=60, check=False, **options)
        assert release.returncode == 0, release.stderr
        key = (tmp_path / "data" / "operator.key").read_text().strip()

        web = subprocess.Popen([sys.executable, "-m", "api"], **options)
        try:
            eventually(lambda: web.poll() is not None or listens(port), 180, "the API answers")
            answer = httpx2.get(f"http://127.0.0.1:{port}/v1/batches", headers={"Authorization": f"Bearer {key}"})
        finally:
            web.terminate()
            _, told = web.communicate(timeout=20)

    assert answer.json()["data"] == []
    assert not (tmp_path / "data" / "nightmill.db").exists()  # it was not SQLite that answered
    assert "hunter2" not in release.stderr + told
    assert "web_started" in told


def listens(port: int) -> bool:
    try:
        return bool(httpx2.get(f"http://127.0.0.1:{port}/livez", timeout=2).is_success)
    except httpx2.HTTPError:
        return False
