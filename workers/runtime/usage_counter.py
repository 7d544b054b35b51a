"""Usage of interactive requests: added up in this process, and written every few seconds.

    answer ──add──▶ sums by minute and key ──every FLUSH_SECONDS, and at the end──▶ `jobs.usage.minutes`

A worker that is killed loses what it has added since: at most FLUSH_SECONDS and one write. What cannot be written is
written with the next sums.
"""

import logging
import threading
from typing import Final

from jobs.clock import now
from jobs.db.engine import Database
from jobs.logs import Seldom
from jobs.usage import minutes
from jobs.usage.minutes import OTHER, Amounts, Sums, UsageKey, minute_of
from workers.engines.port import Answer, Usage

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 5.0
#: Further keys are counted without their model, which clients may choose.
MAX_KEYS: Final = 1000
_CLOSE_SECONDS: Final = 5.0
_NOTHING: Final = Usage()


class UsageCounter:
    """The usage of interactive requests that this process has answered. Usable from any thread."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._sums: Sums = {}
        self._work, self._closing = threading.Event(), threading.Event()
        self._failed = Seldom(log, "usage_unwritten")
        self._writer: threading.Thread | None = None

    def add_answer(self, key: UsageKey, answer: Answer) -> None:
        """Count an answered request; one that was refused before it took tokens does not count."""
        if answer.status < 400 or answer.usage.total_tokens:
            self.add(key._replace(subject=minutes.CACHE) if answer.is_cached else key, answer.usage)

    def add(self, key: UsageKey, usage: Usage = _NOTHING) -> None:
        """Count a request and its tokens."""
        amounts = Amounts(1, usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens)
        at = minute_of(now()), key
        with self._lock:
            if len(self._sums) >= MAX_KEYS and at not in self._sums:
                at = at[0], key._replace(model=OTHER)
            minutes.add(self._sums, at, amounts)
            if self._writer is None:
                self._writer = threading.Thread(target=self._run, name="usage-write", daemon=True)
                self._writer.start()
        self._work.set()

    def flush(self) -> None:
        """Write what was added; keep it where that fails."""
        with self._writing:
            with self._lock:
                sums, self._sums = self._sums, {}
                self._work.clear()
            if not sums:
                return
            try:
                with self._db.write() as session:
                    for (minute, key), amounts in sums.items():
                        minutes.record(session, key, amounts, minute)
            except Exception as error:  # noqa: BLE001  the writer must survive every error
                self._failed.warn(error=type(error).__name__)
                with self._lock:
                    for at, amounts in sums.items():
                        minutes.add(self._sums, at, amounts)
                self._work.set()

    def close(self) -> None:
        """Write what was added, and stop the writer."""
        self._closing.set()
        self._work.set()
        if self._writer is not None:
            self._writer.join(_CLOSE_SECONDS)
        self.flush()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._work.wait()
            self._closing.wait(FLUSH_SECONDS)
            self.flush()
