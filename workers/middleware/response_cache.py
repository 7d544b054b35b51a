"""The cache in SQL as a worker uses it: lookups are batched, writes are deferred, and no request waits long for either.

    find ──┐ lookups that arrive while one runs           store, prolong, count ──▶ pending ─every half second─▶ writer
    find ──┴─▶ share the next ──▶ SQL, in a thread                                 few rows a transaction ──▶ SQL

Every error is a miss. A slow or unavailable database is left alone for a while, entries that cannot be written are
dropped, and entries that a dying worker had not written are computed again.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import WRITE_ROWS, Database
from jobs.inference import cache
from jobs.inference.cache import CachedValue, NewEntry
from jobs.logs import Seldom
from jobs.security.project_rules import rules_of
from jobs.timings import Timings

log = logging.getLogger(__name__)

MAX_KEYS: Final = 4000  # in one lookup, unless a single request has more
SUSPEND_SECONDS: Final = 10.0  # without lookups, after one that failed
COUNT_SECONDS: Final = 10.0  # between writes of nothing but counts
SIZE_SECONDS: Final = 60.0
MAX_PENDING_BYTES: Final = 32 << 20  # bytes; more is dropped
MAX_WRITTEN_BYTES: Final = 4 << 20  # in one transaction
#: Half of a transaction's rows are deletions that make room for the other half.
ROWS: Final = WRITE_ROWS // 2

_CLOSE_SECONDS: Final = 2.0
_PAUSE_FACTOR: Final = 3.0  # the pause before the next transaction, in durations of the last one

EntrySource = Callable[[], Iterable[NewEntry]]


@dataclass(frozen=True, slots=True)
class CacheLookup:
    """The entries that were found, and the project's epoch, which new entries of the project must carry."""

    epoch: int
    entries: dict[bytes, CachedValue]


@dataclass(slots=True)
class _PendingLookup:
    project_id: str
    keys: Sequence[bytes]
    result: "asyncio.Future[CacheLookup | None]"


@dataclass(slots=True)
class _PendingWrites:
    """The pending writes of the cache: new entries, later expiries, and counts of uses."""

    entry_sources: list[EntrySource] = field(default_factory=list)
    size: int = 0
    prolonged: list[bytes] = field(default_factory=list)
    prolong_until: float = 0.0  # the new expiry of `prolonged`
    use_counts: dict[str, tuple[int, int]] = field(default_factory=dict)


class ResponseCache:
    """The cache of one process. `find` belongs to one event loop; the rest may be called from any thread."""

    def __init__(self, db: Database, max_bytes: int, timings: Timings = Timings()) -> None:
        self._db = db
        self._timings = timings
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="cache-find")
        self._queued: list[_PendingLookup] = []
        self._lookup_task: asyncio.Task[None] | None = None
        self._suspended_until = float("-inf")
        self._failed = Seldom(log, "cache_failed")
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._work = threading.Event()
        self._pending = _PendingWrites()
        self._counts_written_at = time.monotonic()
        self._size = 0
        self._size_read_at = float("-inf")
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run_writer, name="cache-write", daemon=True)
        self._writer.start()

    async def find(self, project_id: str, keys: Sequence[bytes]) -> CacheLookup | None:
        """Look up `keys`; return None if the database does not answer now, or nothing of the project is kept."""
        if time.monotonic() < self._suspended_until:
            return None
        lookup = _PendingLookup(project_id, keys, asyncio.get_running_loop().create_future())
        self._queued.append(lookup)
        if self._lookup_task is None:
            self._lookup_task = asyncio.create_task(self._serve_lookups())
        return await lookup.result

    def store(self, size: int, entries_of: EntrySource) -> None:
        """Write the entries of `entries_of`, later and in another thread. `size` is their approximate size in bytes."""
        with self._lock:
            if self._pending.size + size > MAX_PENDING_BYTES:
                return
            self._pending.size += size
            self._pending.entry_sources.append(entries_of)
        self._work.set()

    def prolong(self, keys: Sequence[bytes], expires_at: float) -> None:
        """Note that entries were used. All of one write expire with the latest of them."""
        with self._lock:
            self._pending.prolonged += keys
            self._pending.prolong_until = max(self._pending.prolong_until, expires_at)
        self._work.set()

    def count(self, kind: str, hits: int, misses: int) -> None:
        with self._lock:
            before = self._pending.use_counts.get(kind, (0, 0))
            self._pending.use_counts[kind] = before[0] + hits, before[1] + misses
        if time.monotonic() - self._counts_written_at > COUNT_SECONDS:
            self._work.set()

    def flush(self) -> None:
        """Write what is pending, and return when it is written or dropped."""
        with self._writing:
            with self._lock:
                writes, self._pending = self._pending, _PendingWrites()
                self._work.clear()
            try:
                self._write(writes)
            except Exception as error:  # noqa: BLE001  the writer must survive every error
                self._failed.warn(error=type(error).__name__)

    def close(self) -> None:
        """Write what is pending, and stop the writer."""
        self._closing.set()
        self._work.set()
        self._writer.join(_CLOSE_SECONDS)
        self._threads.shutdown(wait=False)

    async def _serve_lookups(self) -> None:
        """Run lookups, one after the other, while there are any. An error is a miss for all that wait."""
        loop = asyncio.get_running_loop()
        lookups: list[_PendingLookup] = []
        try:
            while lookups := self._next():
                reading = loop.run_in_executor(self._threads, self._read, lookups)
                _resolve(lookups, await asyncio.wait_for(reading, self._timings.cache_patience))
        except Exception as error:  # noqa: BLE001  no caller may wait for ever
            self._fail(error)
        finally:
            missed, self._queued, self._lookup_task = [*lookups, *self._queued], [], None
            _resolve(missed, [None] * len(missed))

    def _next(self) -> list[_PendingLookup]:
        """Return the lookups that have waited longest, as many as one query may serve."""
        waiting = [lookup for lookup in self._queued if not lookup.result.done()]
        keys = accumulate(len(lookup.keys) for lookup in waiting)
        count = max(1, sum(total <= MAX_KEYS for total in keys))
        self._queued = waiting[count:]
        return waiting[:count]

    def _read(self, lookups: Sequence[_PendingLookup]) -> list[CacheLookup | None]:
        """Return what is cached; None for a project of which nothing is kept."""
        keys = list(dict.fromkeys(key for lookup in lookups for key in lookup.keys))
        projects = {lookup.project_id for lookup in lookups}
        with self._db.read() as session:
            epochs = cache.epochs(session, projects)
            kept = {project_id for project_id in projects if not rules_of(session, project_id).keeps_nothing}
            entries = cache.find(session, keys, now())
        return [
            CacheLookup(epochs[lookup.project_id], {key: entries[key] for key in lookup.keys if key in entries})
            if lookup.project_id in kept
            else None
            for lookup in lookups
        ]

    def _fail(self, error: Exception) -> None:
        self._suspended_until = time.monotonic() + SUSPEND_SECONDS
        self._failed.warn(error=type(error).__name__)

    def _run_writer(self) -> None:
        while not self._closing.is_set():
            self._work.wait()
            self._closing.wait(self._timings.cache_gather)
            self.flush()

    def _write(self, writes: _PendingWrites) -> None:
        """Write what is pending. The rest is dropped on an error.

        Raises: DatabaseBusy, SQLAlchemyError.
        """
        if writes.use_counts:
            self._counts_written_at = time.monotonic()
            self._write_rows(lambda session: cache.count(session, writes.use_counts))
        for at in range(0, len(writes.prolonged), ROWS):
            self._prolong(writes.prolonged[at : at + ROWS], writes.prolong_until)
        for entries in _parts(new for entries_of in writes.entry_sources for new in entries_of()):
            self._put(entries)

    def _prolong(self, keys: Sequence[bytes], expires_at: float) -> None:
        self._write_rows(lambda session: cache.prolong(session, keys, expires_at))

    def _put(self, entries: Sequence[NewEntry]) -> None:
        """Write entries; if the cache is full, delete those that expire first."""
        added = sum(len(entry.value) for entry in entries)
        if time.monotonic() - self._size_read_at > SIZE_SECONDS:
            with self._db.read() as session:
                self._size = cache.size(session)
            self._size_read_at = time.monotonic()

        def work(session: Session) -> int:
            cache.put(session, entries)
            full = self._size + added > self._max_bytes
            return cache.evict(session, min(2 * len(entries), WRITE_ROWS - len(entries))) if full else 0

        self._size += added - self._write_rows(work)

    def _write_rows(self, work: Callable[[Session], int | None]) -> int:
        began = time.monotonic()
        with self._db.write() as session:
            rows = work(session)
        if self._db.sqlite:  # one writer at a time, and this one is not urgent
            self._closing.wait(min(_PAUSE_FACTOR * (time.monotonic() - began), 1.0))
        return rows or 0


def _resolve(lookups: Sequence[_PendingLookup], results: Sequence[CacheLookup | None]) -> None:
    for lookup, result in zip(lookups, results, strict=True):
        if not lookup.result.done():
            lookup.result.set_result(result)


def _parts(entries: Iterable[NewEntry]) -> Iterator[list[NewEntry]]:
    """Split entries into transactions, by rows and by bytes."""
    part: list[NewEntry] = []
    size = 0
    for entry in entries:
        if part and (len(part) == ROWS or size + len(entry.value) > MAX_WRITTEN_BYTES):
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.value)
    if part:
        yield part
