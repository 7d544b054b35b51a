"""Write what this process has measured of interactive requests, every ten seconds: no request waits for that.

The answers of shadows that are kept are written with it.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from api.shares import run_unshared
from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.inference import request_counts, shadow_answers
from jobs.inference.request_counts import Counts, RequestKey, ShadowCounts, ShadowKey
from jobs.inference.shadow_answers import AnswerPair
from jobs.usage.minutes import minute_of

log = logging.getLogger(__name__)

_EVERY: Final = 10.0  # seconds
_MAX_KEYS: Final = 50_000
_MAX_PAIRS: Final = 200


class RequestRecorder:
    """The counts of this process that are not written yet, for one event loop.

    While the database is busy they are kept, up to a number; counts under more keys are left out.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._counts: Counts = {}
        self._pairs: list[AnswerPair] = []
        self._writing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()  # of the loop of `_writing`

    def record(self, project_id: str, model: str, measure: str, bucket: str, total: float, count: int = 1) -> None:
        """Count values of a measure; `total` is their sum."""
        self._count(RequestKey(project_id, minute_of(now()), model, measure, bucket), (count, total))

    def record_shadow(self, project_id: str, alias: str, model: str, counts: ShadowCounts) -> None:
        """Count requests for the shadow of an alias."""
        self._count(ShadowKey(project_id, alias, model, minute_of(now())), counts)

    def keep(self, pair: AnswerPair) -> None:
        """Keep the answers of a shadow and of its target; where too many are not written yet, they are left out."""
        if len(self._pairs) < _MAX_PAIRS:
            self._pairs.append(pair)
        self._write_soon()

    def _count(self, key: RequestKey | ShadowKey, values: tuple[float, ...]) -> None:
        if key in self._counts or len(self._counts) < _MAX_KEYS:
            request_counts.add(self._counts, key, values)
        self._write_soon()

    def _write_soon(self) -> None:
        if self._writing is None or self._writing.done():
            self._closing = asyncio.Event()
            self._writing = asyncio.create_task(self._write(self._closing))

    async def _write(self, closing: asyncio.Event) -> None:
        while self._counts or self._pairs:
            with suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), _EVERY)
            counts, self._counts = self._counts, {}
            pairs, self._pairs = self._pairs, []
            try:
                await run_unshared(self._add, counts, pairs)
            except DatabaseBusy:
                self._pairs = [*pairs, *self._pairs][:_MAX_PAIRS]
                for key, count in counts.items():
                    request_counts.add(self._counts, key, count)
                if closing.is_set():
                    log.warning("request_counts_lost", extra={"counts": len(counts)})
                    return

    def _add(self, counts: Counts, pairs: Sequence[AnswerPair]) -> None:
        with self._db.write() as session:
            request_counts.write(session, counts)
            shadow_answers.write(session, pairs)

    async def close(self) -> None:
        """Wait until what was counted is written."""
        self._closing.set()
        if self._writing is not None and not self._writing.done():
            await self._writing
