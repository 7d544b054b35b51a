"""A server that is missing is said to be missing: skipped on a laptop, failed where nothing may be."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.services import Postgres, need

ROOT = Path(__file__).parent.parent.parent
#: A test run in the middle of its work.
RUN = """
import sys
from tests.support.services import Postgres
print(Postgres().pid, flush=True)
sys.stdin.read()
"""


def test_a_missing_server_skips_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="PostgreSQL can't be started: no room"):
        need("PostgreSQL", OSError("no room"))


def test_a_missing_server_fails_where_ci_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="PostgreSQL can't be started: no room"):
        need("PostgreSQL", OSError("no room"))


@pytest.mark.postgres
def test_a_test_run_that_is_killed_leaves_no_server(postgres_server: Postgres) -> None:
    run = subprocess.Popen([sys.executable, "-c", RUN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout is not None
    server = psutil.Process(int(run.stdout.readline()))

    run.kill()
    run.communicate()

    server.wait(20)
    assert not server.is_running()
