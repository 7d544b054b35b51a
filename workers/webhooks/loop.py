"""The delivery loop: one per process, an asyncio loop in the thread that calls `run`.

    ┌─▶ turn: one transaction, at most each 50 ms: record outcomes · release claims · claim due deliveries
    │         │
    │         ▼
    └── outcomes ◀── posts in flight ◀── lanes

An attempt that was not recorded, because the process died, is repeated under the same `webhook-id`. While the queue or
this worker is paused nothing is claimed, and claims without an attempt are released.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.ledger import pauses
from jobs.logs import Seldom
from jobs.platform.limiters import FairQueue
from jobs.platform.url_guard import on_behalf_of
from jobs.queues import Queue
from jobs.settings import Settings
from jobs.timings import Timings
from jobs.webhooks import deliveries, outcomes
from jobs.webhooks.claims import DeliveryClaim, claim_due, release_claims, revoke_claims
from jobs.webhooks.sending import AttemptOutcome, WebhookClient, open_client, post_signed

T = TypeVar("T")
log = logging.getLogger(__name__)

_CLAIMS = 64  # per transaction
_OUTCOMES = 128  # per transaction
_TURN_SECONDS = 0.05
_POLL_SECONDS = 0.15
_BUSY_SECONDS = 0.5  # before the next turn, after the database refused one
_GONE = 410
IN_FLIGHT = 256
PER_LANE = 2
#: Claims ahead for each lane, because outcomes are recorded and claims made only each 50 ms.
AHEAD = 16
SLOW_AFTER = 1.0
_SLOW_LANES = IN_FLIGHT // 2
_FORGET_AFTER = 300.0

_lock = threading.Lock()
_running: set[str] = set()


@dataclass(slots=True)
class _Lane:
    flights: dict[str, float] = field(default_factory=dict)  # delivery → start
    slow: bool = False
    used: float = 0.0


class Lanes:
    """Decide which claims are sent now, with one lane per receiver; without I/O or a clock.

        claimed ──▶ waiting in its lane ──▶ in flight: 2 per lane, 256 in all ──▶ finished

    A lane with a request older than a second is slow until it answers faster: one request at a time, nothing claimed
    ahead, and all slow lanes together get half of the capacity. So any number of hanging receivers leaves room for
    others.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._waiting = FairQueue[DeliveryClaim]()
        self._flying = 0

    def add(self, claims: Iterable[DeliveryClaim]) -> None:
        for claim in claims:
            self._lanes.setdefault(claim.lane, _Lane())
            self._waiting.add(claim.lane, claim)

    def start(self, at: float) -> list[DeliveryClaim]:
        """Return the claims to send now, from each lane in turn, while fewer than `IN_FLIGHT` are in flight."""
        started: list[DeliveryClaim] = []
        while self._flying < IN_FLIGHT and (claim := self._waiting.pop(self._may_start)) is not None:
            lane = self._lanes[claim.lane]
            lane.flights[claim.id] = lane.used = at
            self._flying += 1
            started.append(claim)
        return started

    def _may_start(self, name: str) -> bool:
        lane = self._lanes[name]
        return len(lane.flights) < (1 if lane.slow else PER_LANE)

    def end_flight(self, claim: DeliveryClaim, at: float) -> None:
        lane = self._lanes[claim.lane]
        lane.slow = at - lane.flights.pop(claim.id) > SLOW_AFTER
        lane.used = at
        self._flying -= 1

    def watch(self, at: float) -> None:
        """Mark slow lanes, and drop idle ones."""
        for name, lane in list(self._lanes.items()):
            lane.slow = lane.slow or any(at - start > SLOW_AFTER for start in lane.flights.values())
            busy = lane.flights or self._waiting.count(name)
            if not busy and (not lane.slow or at - lane.used > _FORGET_AFTER):
                del self._lanes[name]

    def surrender(self, closed: Iterable[str] = (), *, everything: bool = False) -> list[DeliveryClaim]:
        """Return the claims that wait in slow and closed lanes, or in all, for other workers."""
        dropped: list[DeliveryClaim] = []
        closing = set(closed)
        for name, lane in self._lanes.items():
            if everything or lane.slow or name in closing:
                dropped += self._waiting.drop(name)
        return dropped

    def allowances(self) -> dict[str, int]:
        """Return how many deliveries slow lanes may hold: one, or none while slow lanes use half of the capacity."""
        slow = {name: lane for name, lane in self._lanes.items() if lane.slow}
        open_ = sum(1 for lane in slow.values() if lane.flights) < _SLOW_LANES
        return dict.fromkeys(slow, 1 if open_ else 0)

    def room(self) -> int:
        """Return how many more requests may be in flight."""
        return IN_FLIGHT - self._flying


def run(db: Database, config: Settings, worker_id: str, stop: threading.Event, timings: Timings = Timings()) -> None:
    """Deliver until nothing was due for a while or `stop` is set. Return at once if this worker already delivers."""
    with _hold_turn(worker_id) as first:
        if first:
            asyncio.run(_main(db, config, worker_id, stop, timings))


@contextmanager
def _hold_turn(worker_id: str) -> Iterator[bool]:
    with _lock:
        first = worker_id not in _running
        _running.add(worker_id)
    try:
        yield first
    finally:
        if first:
            _running.discard(worker_id)


async def _main(db: Database, config: Settings, worker_id: str, stop: threading.Event, timings: Timings) -> None:
    with ThreadPoolExecutor(1, "deliveries") as sql:
        async with open_client(config) as client:
            loop = _Loop(db, config, worker_id, client, sql, timings)
            try:
                await loop.work(stop)
            finally:
                await loop.finish()


@dataclass(slots=True)
class _Turn:
    """The writes of one transaction, and its result."""

    results: list[tuple[DeliveryClaim, AttemptOutcome]]
    back: list[DeliveryClaim]
    keep: list[DeliveryClaim] | None = None
    claims: list[DeliveryClaim] = field(default_factory=list)
    next_due: float | None = None
    paused: bool = False


class _Loop:
    """The loop of one process.

    `_results` are unrecorded outcomes; `_held` are all claims without a recorded outcome.
    """

    def __init__(
        self,
        db: Database,
        config: Settings,
        worker_id: str,
        client: WebhookClient,
        sql: ThreadPoolExecutor,
        timings: Timings,
    ) -> None:
        self._db, self._timings = db, timings
        self._config = config
        self._worker_id = worker_id
        self._client = client
        self._sql = sql
        self._lanes = Lanes()
        self._held: dict[str, DeliveryClaim] = {}
        self._results: list[tuple[DeliveryClaim, AttemptOutcome]] = []
        self._back: list[DeliveryClaim] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._doubt = True  # claims of an earlier run, or of a commit with an unknown result, may exist
        self._next_due: float | None = None
        self._claimed = 0  # by the last turn
        self._waiting = Seldom(log, "deliveries_wait_for_database")
        self._refused = False  # the database refused the last turn
        self._paused = False

    async def work(self, stop: threading.Event) -> None:
        active = time.monotonic()
        while not stop.is_set() and (self._is_at_it() or time.monotonic() - active < self._timings.deliveries_idle):
            self._lanes.watch(time.monotonic())
            self._back += self._lanes.surrender(self._closed_lanes(), everything=self._paused)
            if self._has_results() or await self._is_due():
                await self._take_turn(claiming=True)
            self._send()
            if self._is_at_it():
                active = time.monotonic()
            await self._pause()

    async def finish(self) -> None:
        """Wait for requests in flight within reason, record them, and release the other claims."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timings.deliveries_grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        known = {claim.id for claim, _ in self._results}
        self._back = [claim for claim in self._held.values() if claim.id not in known]
        while self._results or self._back:
            if not await self._take_turn(claiming=False):
                log.warning("deliveries_left_claimed", extra={"count": len(self._held)})
                return

    def _closed_lanes(self) -> set[str]:
        """Return the endpoints that have just answered 410."""
        return {claim.lane for claim, outcome in self._results if outcome.status_code == _GONE}

    def _is_at_it(self) -> bool:
        """Return whether there is something to finish.

        In doubt too: no other process releases this worker's unknown claims.
        """
        return bool(self._held) or self._has_results()

    def _has_results(self) -> bool:
        return bool(self._results or self._back or self._doubt)

    async def _is_due(self) -> bool:
        try:
            self._next_due, self._paused = await self._run_sql(self._look)
        except DatabaseBusy:
            return False
        return self._next_due is not None and self._next_due <= now()

    def _look(self) -> tuple[float | None, bool]:
        """Return when the next delivery is due, and whether deliveries are paused."""
        with self._db.read() as session:
            paused = self._is_paused(session)
            return None if paused else deliveries.next_due(session), paused

    def _is_paused(self, session: Session) -> bool:
        return pauses.current_pauses(session).rests(Queue.WEBHOOKS, self._worker_id)

    async def _take_turn(self, *, claiming: bool) -> bool:
        """Run one transaction; return False if the database was busy and everything is still to be done."""
        turn = _Turn(self._results[:_OUTCOMES], self._back, list(self._held.values()) if self._doubt else None)
        limit = min(_CLAIMS, self._lanes.room()) if claiming else 0
        allowances = self._lanes.allowances()
        try:
            await self._run_sql(lambda: self._write(turn, limit, allowances))
        except DatabaseBusy:
            self._waiting.warn(outcomes=len(turn.results))
            self._doubt = True  # it may be committed all the same; the guards prevent that anything counts twice
            self._refused = True
            return False
        self._settle(turn)
        return True

    def _write(self, turn: _Turn, limit: int, allowances: dict[str, int]) -> None:
        with self._db.write() as session:
            if turn.keep is not None:
                revoke_claims(session, self._worker_id, turn.keep)
            written = outcomes.record(session, turn.results, self._config)
            release_claims(session, turn.back)
            if limit > 0:
                turn.claims = claim_due(session, self._worker_id, limit, AHEAD, allowances)
            turn.paused = self._is_paused(session)
            turn.next_due = None if turn.paused else deliveries.next_due(session)
        if written < len(turn.results):
            log.warning("outcomes_fenced", extra={"count": len(turn.results) - written})

    def _settle(self, turn: _Turn) -> None:
        self._doubt = self._refused = False
        self._next_due, self._paused = turn.next_due, turn.paused
        self._claimed = len(turn.claims)
        del self._results[: len(turn.results)]
        self._back = []
        for claim in (*(claim for claim, _ in turn.results), *turn.back):
            self._held.pop(claim.id, None)
        self._held.update({claim.id: claim for claim in turn.claims})
        self._lanes.add(turn.claims)

    def _send(self) -> None:
        for claim in self._lanes.start(time.monotonic()):
            task = asyncio.create_task(self._deliver(claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, claim: DeliveryClaim) -> None:
        try:
            with on_behalf_of(claim.project_id):
                outcome = await post_signed(
                    self._client,
                    claim.url,
                    claim.secrets,
                    claim.id,
                    claim.body,
                    sequence=claim.sequence,
                    request_id=claim.request_id,
                )
        except Exception:  # a bug counts as a failed attempt: it must neither stop the loop nor lose the delivery
            log.exception("delivery_broken", extra={"delivery": claim.id})
            outcome = AttemptOutcome(None, "internal error", None, 0.0)
        self._note(claim, outcome)
        self._lanes.end_flight(claim, time.monotonic())
        self._results.append((claim, outcome))
        self._send()
        self._wake.set()

    def _note(self, claim: DeliveryClaim, outcome: AttemptOutcome) -> None:
        level, name = (logging.DEBUG, "webhook_delivered") if outcome.delivered else (logging.INFO, "webhook_failed")
        fields = {"delivery": claim.id, "endpoint": claim.endpoint_id, "attempt": claim.attempt}
        fields |= {"request_id": claim.request_id} if claim.request_id else {}
        log.log(level, name, extra={**fields, "status": outcome.status_code, "failure": outcome.error})

    async def _pause(self) -> None:
        """Wait until an outcome arrives or a delivery is due; at least 50 ms between two turns.

        A full disk refuses immediately, and each time.
        """
        await asyncio.sleep(_BUSY_SECONDS if self._refused else _TURN_SECONDS)
        rest = min(_POLL_SECONDS - _TURN_SECONDS, self._seconds_to_due())
        if rest > 0 and not self._results:
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._wake.wait()
        self._wake.clear()

    def _seconds_to_due(self) -> float:
        """Return the seconds until the next delivery is due.

        Due but unclaimed ones wait in full lanes, so they need no hurry.
        """
        until = self._next_due - now() if self._next_due is not None else _POLL_SECONDS
        return _POLL_SECONDS if until <= 0 and not self._claimed else until

    async def _run_sql(self, work: Callable[[], T]) -> T:
        """Run SQL on one thread, outside of the event loop, so that requests go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._sql, work)
