"""The cache as a worker uses it: it is asked in company, written to afterwards, and never waited for long.

    find ──┐ those that come while one look-up runs       keep, prolong, count ──▶ heap ──every half second──▶ writer
    find ──┴─▶ share the next ──▶ SQL, in a thread                                 few rows a transaction ──▶ SQL

Whatever goes wrong here is a miss: a database that is slow or away is left alone for a while, what could not be written
is dropped, and what a worker that dies had not written yet is computed once more.
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
from jobs.inference.cache import Entry, New
from jobs.logs import Seldom
from jobs.timings import Timings

log = logging.getLogger(__name__)

MOST_KEYS: Final = 4000  # in one look-up, but for a single request that has more
REST_SECONDS: Final = 10.0  # after one that failed
COUNT_SECONDS: Final = 10.0  # between writes of counts alone
SIZE_SECONDS: Final = 60.0
MOST_WAITING: Final = 32 << 20  # bytes; what comes on top is dropped
MOST_WRITTEN: Final = 4 << 20  # in one transaction
#: Half of a transaction makes room for the other.
ROWS: Final = WRITE_ROWS // 2

_CLOSE_SECONDS: Final = 2.0
_POLITENESS: Final = 3.0  # times as long as a transaction took, before the next

Make = Callable[[], Iterable[New]]


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of the keys, and the project's epoch, which whatever is kept for it has to have."""

    epoch: int
    entries: dict[bytes, Entry]


@dataclass(slots=True)
class _Look:
    project_id: str
    keys: Sequence[bytes]
    found: "asyncio.Future[Found | None]"


@dataclass(slots=True)
class _Heap:
    """What is to be written."""

    makes: list[Make] = field(default_factory=list)
    size: int = 0
    prolonged: list[bytes] = field(default_factory=list)
    until: float = 0.0  # those
    uses: dict[str, tuple[int, int]] = field(default_factory=dict)


class Shelf:
    """One process's. `find` belongs to one event loop; the rest may be called from any thread."""

    def __init__(self, db: Database, max_bytes: int, timings: Timings = Timings()) -> None:
        self._db = db
        self._timings = timings
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="cache-find")
        self._asked: list[_Look] = []
        self._looking: asyncio.Task[None] | None = None
        self._rests_until = float("-inf")
        self._failed = Seldom(log, "cache_failed")
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._work = threading.Event()
        self._heap = _Heap()
        self._counted = time.monotonic()
        self._size = 0
        self._sized = float("-inf")
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_until_closed, name="cache-write", daemon=True)
        self._writer.start()

    async def find(self, project_id: str, keys: Sequence[bytes]) -> Found | None:
        """None where it cannot be said now."""
        if time.monotonic() < self._rests_until:
            return None
        look = _Look(project_id, keys, asyncio.get_running_loop().create_future())
        self._asked.append(look)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return await look.found

    def keep(self, size: int, make: Make) -> None:
        """Write what `make` gives, later and in another thread. It is of about `size` bytes."""
        with self._lock:
            if self._heap.size + size > MOST_WAITING:
                return
            self._heap.size += size
            self._heap.makes.append(make)
        self._work.set()

    def prolong(self, keys: Sequence[bytes], expires_at: float) -> None:
        """They were used. All that come together stay as long as the longest of them."""
        with self._lock:
            self._heap.prolonged += keys
            self._heap.until = max(self._heap.until, expires_at)
        self._work.set()

    def count(self, kind: str, hits: int, misses: int) -> None:
        with self._lock:
            before = self._heap.uses.get(kind, (0, 0))
            self._heap.uses[kind] = before[0] + hits, before[1] + misses
        if time.monotonic() - self._counted > COUNT_SECONDS:
            self._work.set()

    def flush(self) -> None:
        """Write what waits, and return when it is written or dropped."""
        with self._writing:
            with self._lock:
                heap, self._heap = self._heap, _Heap()
                self._work.clear()
            try:
                self._write(heap)
            except Exception as error:  # noqa: BLE001  a writer that ended would never write again
                self._failed.warn(error=type(error).__name__)

    def close(self) -> None:
        """Write what waits, and nothing after it."""
        self._closing.set()
        self._work.set()
        self._writer.join(_CLOSE_SECONDS)
        self._threads.shutdown(wait=False)

    async def _look(self) -> None:
        """Look-ups, one after the other, as long as anybody asks. One that goes wrong is a miss for all who wait."""
        loop = asyncio.get_running_loop()
        looks: list[_Look] = []
        try:
            while looks := self._next():
                reading = loop.run_in_executor(self._threads, self._read, looks)
                _tell(looks, await asyncio.wait_for(reading, self._timings.cache_patience))
        except Exception as error:  # noqa: BLE001  nobody is to wait for what will never come
            self._fail(error)
        finally:
            missed, self._asked, self._looking = [*looks, *self._asked], [], None
            _tell(missed, [None] * len(missed))

    def _next(self) -> list[_Look]:
        """Those that have waited longest, as many as one look-up may serve."""
        waiting = [look for look in self._asked if not look.found.done()]
        keys = accumulate(len(look.keys) for look in waiting)
        count = max(1, sum(total <= MOST_KEYS for total in keys))
        self._asked = waiting[count:]
        return waiting[:count]

    def _read(self, looks: Sequence[_Look]) -> list[Found]:
        keys = list(dict.fromkeys(key for look in looks for key in look.keys))
        with self._db.read() as session:
            epochs = cache.epochs(session, {look.project_id for look in looks})
            entries = cache.find(session, keys, now())
        return [
            Found(epochs[look.project_id], {key: entries[key] for key in look.keys if key in entries}) for look in looks
        ]

    def _fail(self, error: Exception) -> None:
        self._rests_until = time.monotonic() + REST_SECONDS
        self._failed.warn(error=type(error).__name__)

    def _write_until_closed(self) -> None:
        while not self._closing.is_set():
            self._work.wait()
            self._closing.wait(self._timings.cache_gather)
            self.flush()

    def _write(self, heap: _Heap) -> None:
        """Raises DatabaseBusy, SQLAlchemyError: what was not written by then is dropped."""
        if heap.uses:
            self._counted = time.monotonic()
            self._in_one(lambda session: cache.count(session, heap.uses))
        for at in range(0, len(heap.prolonged), ROWS):
            self._prolong(heap.prolonged[at : at + ROWS], heap.until)
        for entries in _parts(new for make in heap.makes for new in make()):
            self._put(entries)

    def _prolong(self, keys: Sequence[bytes], expires_at: float) -> None:
        self._in_one(lambda session: cache.prolong(session, keys, expires_at))

    def _put(self, entries: Sequence[New]) -> None:
        """Keep these; where there is no room, what would expire first goes for it."""
        added = sum(len(entry.value) for entry in entries)
        if time.monotonic() - self._sized > SIZE_SECONDS:
            with self._db.read() as session:
                self._size = cache.size(session)
            self._sized = time.monotonic()

        def work(session: Session) -> int:
            cache.put(session, entries)
            full = self._size + added > self._max_bytes
            return cache.evict(session, min(2 * len(entries), WRITE_ROWS - len(entries))) if full else 0

        self._size += added - self._in_one(work)

    def _in_one(self, work: Callable[[Session], int | None]) -> int:
        began = time.monotonic()
        with self._db.write() as session:
            said = work(session)
        if self._db.sqlite:  # one writes at a time, and nobody waits for this
            self._closing.wait(min(_POLITENESS * (time.monotonic() - began), 1.0))
        return said or 0


def _tell(looks: Sequence[_Look], found: Sequence[Found | None]) -> None:
    for look, one in zip(looks, found, strict=True):
        if not look.found.done():
            look.found.set_result(one)


def _parts(entries: Iterable[New]) -> Iterator[list[New]]:
    """As many as go into one transaction, by rows and by bytes."""
    part: list[New] = []
    size = 0
    for entry in entries:
        if part and (len(part) == ROWS or size + len(entry.value) > MOST_WRITTEN):
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.value)
    if part:
        yield part
