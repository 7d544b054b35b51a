"""Note when keys were last used, beside the requests: no request waits for that, or fails by it."""

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from sqlalchemy import or_, update

from api.shares import run_unshared
from jobs.clock import now
from jobs.db.engine import Database, page_ids
from jobs.errors import DatabaseBusy
from jobs.security.tables import ApiKey

#: Seconds in which one use of a key is written.
_EVERY: Final = 60.0
_MAX_KEYS: Final = 10_000


class KeyUse:
    """The keys that were used in this process, for one event loop.

    A key is written at most once a minute, also by several processes; a process that ends leaves out the last minute.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._noted: dict[str, float] = {}
        self._used: set[str] = set()
        self._writing: asyncio.Task[None] | None = None

    def note(self, key_id: str) -> None:
        """Note that a key is used now."""
        at = time.monotonic()
        if at - self._noted.get(key_id, -_EVERY) < _EVERY:
            return
        if len(self._noted) >= _MAX_KEYS:
            self._noted.clear()
        self._noted[key_id] = at
        self._used.add(key_id)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._used:
            used, self._used = self._used, set()
            with suppress(DatabaseBusy):  # the next use is a minute later
                await run_unshared(self._record, used)

    async def close(self) -> None:
        """Wait until what was noted is written."""
        if self._writing is not None and not self._writing.done():
            await self._writing

    def _record(self, used: Collection[str]) -> None:
        at = now()
        is_old = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= at - _EVERY)
        for ids in page_ids(used):
            with self._db.write() as session:
                session.execute(update(ApiKey).where(ApiKey.id.in_(ids), is_old).values(last_used_at=at))
