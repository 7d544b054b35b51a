"""Structured logs: one JSON object a line, with the job and request the record is about.

    with about(job_id=job.id):
        log.warning("lease_lost", extra={"shard": 3})

Event names are constants, data stands in fields. Prompts, answers and secrets are never fields. What would be said
again and again while something lasts (a full disk, a database that is unavailable) is said now and then: see `Seldom`.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_about: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 (never mutated)
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "about"}


@contextmanager
def about(**ids: str | None) -> Iterator[None]:
    """Add these ids to every record inside."""
    token = _about.set({**_about.get(), **{name: value for name, value in ids.items() if value}})
    try:
        yield
    finally:
        _about.reset(token)


def request_id() -> str | None:
    """Return the id of the API request that the current work belongs to, None outside of such work."""
    return _about.get().get("request_id")


class JsonFormatter(logging.Formatter):
    """Format a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_about.get(),
            **{name: value for name, value in record.__dict__.items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class Seldom:
    """Log a warning at most once in `seconds`, with how often it was suppressed since."""

    def __init__(
        self,
        log: logging.Logger,
        event: str,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._event = event
        self._seconds = seconds
        self._clock = clock
        self._again = float("-inf")
        self._untold = 0
        self._lock = threading.Lock()

    def warn(self, **fields: object) -> None:
        with self._lock:
            at = self._clock()
            if at < self._again:
                self._untold += 1
                return
            untold, self._untold, self._again = self._untold, 0, at + self._seconds
        self._log.warning(self._event, extra={**fields, "untold": untold})


def configure(level: str) -> None:
    """Send this process's logs, and the warnings of Python, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
