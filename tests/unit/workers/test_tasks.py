"""Messages of a worker: what its processes log, and what becomes of a message that the database refuses."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import DatabaseBusy, TookTooLong
from jobs.logs import Seldom
from workers import lifecycle, tasks

ROOT = Path(__file__).parents[3]
#: What Celery's `process_initializer` and billiard do about logs in a spawned child of the pool.
CHILD = """
import logging, os
from celery import Celery
from billiard.spawn import _setup_logging_in_child_hack
import workers.tasks
from jobs.logs import about
os.environ["_MP_FORK_LOGLEVEL_"] = str(logging.WARNING)
_setup_logging_in_child_hack()
app = Celery("nightmill")
app.log.setup(logging.WARNING, None, False, "WARNING", hostname="cpu@here")
with about(job_id="batch_1"):
    logging.getLogger("workers.batches").info("planned")
    logging.getLogger("celery.worker").info("task received")
    logging.getLogger("celery.app.trace").error("task raised")
    logging.getLogger("multiprocessing").warning("a process is gone")
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("celery.task").exception("broken")
"""


def test_spawned_pool_children_log_json_lines_with_job_id() -> None:
    environment = os.environ | {"NIGHTMILL_LOG_LEVEL": "INFO"}
    child = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, env=environment, capture_output=True, check=True)

    lines = [json.loads(line) for line in child.stderr.splitlines()]

    assert [line["event"] for line in lines] == ["planned", "task raised", "a process is gone", "broken"]
    assert {line["job_id"] for line in lines} == {"batch_1"}
    assert "KeyError" in lines[-1]["error"]
    assert child.stdout == b""


def test_message_refused_by_busy_database_logs_single_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "database_away", Seldom(logging.getLogger("workers"), "work_waits_for_database"))

    for _ in range(3):
        with tasks.handling("batch_1"):
            raise DatabaseBusy

    assert [(record.getMessage(), record.levelname) for record in caplog.records] == [
        ("work_waits_for_database", "WARNING")
    ]


def test_a_statement_that_takes_too_long_is_an_error_of_its_task() -> None:
    with pytest.raises(TookTooLong), tasks.handling():
        raise TookTooLong
