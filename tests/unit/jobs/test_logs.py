"""Logs: one JSON object a line, which says what it is about."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jobs import logs
from jobs.logs import JsonFormatter, Seldom, about


def line(record: logging.LogRecord) -> dict[str, object]:
    written: dict[str, object] = json.loads(JsonFormatter().format(record))
    return written


def record(event: str = "claimed", **fields: object) -> logging.LogRecord:
    return logging.getLogger("workers").makeRecord("workers", logging.INFO, "f", 1, event, (), None, extra=fields)


def test_a_record_is_an_event_with_its_fields() -> None:
    written = line(record(shard=3))

    assert written.pop("at")
    assert written == {"level": "info", "logger": "workers", "event": "claimed", "shard": 3}


def test_log_context_applies_only_inside_its_block() -> None:
    with about(job_id="job-1", request_id=None), about(request_id="req-1"):
        inside = line(record())
    outside = line(record())

    assert (inside["job_id"], inside["request_id"]) == ("job-1", "req-1")
    assert "job_id" not in outside


def test_unserialisable_value_is_logged_as_text() -> None:
    assert line(record(what=ValueError("odd")))["what"] == "odd"


@contextmanager
def configured() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure("INFO")
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], level = before
        root.setLevel(level)


def test_exception_is_logged_in_single_field_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        try:
            raise KeyError("lost")
        except KeyError:
            logging.getLogger("workers").exception("task_failed")

    (written,) = capsys.readouterr().err.splitlines()
    assert json.loads(written)["event"] == "task_failed"
    assert "KeyError: 'lost'" in json.loads(written)["error"]


def test_a_warning_of_python_is_a_record_too(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), configured():
        warnings.simplefilter("always")
        warnings.warn("running as root\nis not recommended", RuntimeWarning, stacklevel=1)

    (written,) = capsys.readouterr().err.splitlines()
    assert (json.loads(written)["logger"], json.loads(written)["level"]) == ("py.warnings", "warning")


def test_repeated_warning_is_throttled_and_reports_suppressed_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 0.1, 9.9, 10.0, 10.1])
    warning = Seldom(logging.getLogger("workers"), "disk_full", seconds=10, clock=lambda: next(clock))

    for shard in range(5):
        warning.warn(shard=shard)

    told = [line(record) for record in caplog.records]
    assert [(one["event"], one["shard"], one["untold"]) for one in told] == [("disk_full", 0, 0), ("disk_full", 3, 2)]
