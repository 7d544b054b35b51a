"""Usage of interactive requests: added up in this process, and written every few seconds.

    answer ──add──▶ sums by minute and key ──every FLUSH_SECONDS, and at the end──▶ `jobs.usage.minutes`

A worker that is killed loses what it has added since: at most FLUSH_SECONDS and one write. What cannot be written is
written before the next sums. Each write leaves an idempotency key, so that one whose answer was lost counts once.
"""

import logging
import threading
from typing import Final

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.ids import new_id
from jobs.logs import Seldom
from jobs.security.tables import Idempotency
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
        self._batch: Sums = {}  # what is being written
        self._id, self._batches = new_id("usage_"), 0
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
        """Write what an earlier flush could not write, and what was added since."""
        with self._writing:
            if self._batch and not self._write():
                return
            with self._lock:
                self._batch, self._sums = self._sums, {}
                self._work.clear()
            if self._batch:
                self._batches += 1
                self._write()

    def close(self) -> None:
        """Write what was added, and stop the writer."""
        self._closing.set()
        self._work.set()
        if self._writer is not None:
            self._writer.join(_CLOSE_SECONDS)
        self.flush()

    def _write(self) -> bool:
        """Write the batch, unless an earlier attempt has; return False, and keep it, where that fails."""
        try:
            with self._db.write() as session:
                if session.get(Idempotency, self._key(self._batches)) is None:
                    self._record(session)
        except Exception as error:  # noqa: BLE001  the writer must survive every error
            self._failed.warn(error=type(error).__name__)
            self._work.set()
            return False
        self._batch = {}
        return True

    def _record(self, session: Session) -> None:
        for (minute, key), amounts in self._batch.items():
            minutes.record(session, key, amounts, minute)
        project_id, route, key_of_batch = self._key(self._batches)
        values = {"status": 200, "heartbeat_at": now(), "created_at": now()}
        session.add(Idempotency(project_id=project_id, route=route, key=key_of_batch, **values))
        if before := session.get(Idempotency, self._key(self._batches - 1)):
            session.delete(before)

    def _key(self, batch: int) -> tuple[str, str, str]:
        """Return the primary key of the idempotency key of a batch."""
        return "", "usage", f"{self._id}-{batch}"

    def _run(self) -> None:
        while not self._closing.is_set():
            self._work.wait()
            self._closing.wait(FLUSH_SECONDS)
            self.flush()
