"""Count the deaths of the engines in one worker's process, and quarantine those that die too often.

    begin   before any is built: count deaths of the process before, and suspend what is quarantined here
    died    an engine has died, or not come up: count it in SQL, with what was in flight and the end of the log
    look    once a second: build what was released, try what has rested, one at a time

See `jobs.fleet.quarantine` for the rules. Engines behind a URL have circuit breakers instead.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from jobs.clock import now
from jobs.errors import DatabaseBusy
from jobs.fleet import quarantine, workers
from jobs.fleet.tables import EngineDeath
from jobs.ids import new_id
from jobs.platform import processes
from workers.engines.port import Suspect
from workers.engines.router import Router
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost
from workers.runtime.log_tail import LogTail

log = logging.getLogger(__name__)
_MAX_SUSPECTS = 64  # that are stored for one death
_MAX_NAME = 300


class QuarantineKeeper:
    """The health of the engines of one process, which serves `queue`."""

    def __init__(self, context: Context, router: Router, queue: str, log_tail: LogTail) -> None:
        self._context, self._router, self._queue, self._log_tail = context, router, queue, log_tail
        self._bounds = quarantine.QuarantineLimits.of(context.config)
        known = router.registry.models
        names = (name for engine in router.engines.own for name in engine.models)
        self._entries = {name: quarantine.entry_of(known[name]) for name in names if name in known}
        self._host_devices = processes.host_devices()
        context.standing.host_devices = self._host_devices if router.engines.own else None
        context.standing.phase_of = router.engines.phase_of
        self._trials: dict[str, float | None] = {}  # since when the engine is up
        self._building: Future[None] | None = None
        router.engines.health = self

    def begin(self) -> None:
        """Suspend what is quarantined here. Call it before an engine is built."""
        if not self._entries:
            return
        held = self._context.db.retrying(self._look_back, self._context.stop)
        for engine in self._router.engines.own:
            if (name := engine.models[0]) in held:
                log.error("engine_quarantined", extra={"model": name, "reason": held[name]})
                self._router.engines.suspend(engine)
        self._set_engines({name: self._engine_state(name, up=False) for name in self._entries if name not in held})
        self._write(_nothing)

    def _look_back(self, session: Session) -> dict[str, str]:
        """Return what is quarantined here, and why.

        Count the deaths of earlier processes first: the dispatcher may be late.
        """
        registry = self._router.registry
        for worker in workers.all_workers(session):
            here = worker.host_devices == self._host_devices and self._queue in worker.queues
            if here and worker.engines and processes.has_ended(worker.host, worker.pid, worker.started):
                quarantine.handle_worker_death(session, worker, registry.aliases, self._bounds)
        quarantine.add_log_lines(session, self._host_devices, self._entries, self._log_tail.before)
        held = quarantine.quarantines_at(session, self._host_devices, self._entries, registry.models.keys())
        return {name: row.error for name, row in held.items()}

    def look(self, host: EngineHost) -> None:
        """Build engines that were released or may be tried. Not on the engines' loop."""
        self._settle()
        if not self._router.engines.suspended or (self._building is not None and not self._building.done()):
            return
        try:
            with self._context.db.read() as session:
                held = quarantine.quarantines_at(session, self._host_devices, self._entries)
        except DatabaseBusy:
            return  # a second later
        for engine in self._router.engines.suspended:
            row = held.get(engine.models[0])
            if row is None or (row.until <= now() and self._may_try(engine.models[0])):
                log.warning("engine_tried" if row else "engine_released", extra={"model": engine.models[0]})
                self._building = host.call(self._router.engines.resume(engine))
                return

    def excuse(self) -> None:
        """Note that this process ends by itself, and was not killed by an engine."""
        self._set_engines({})
        with suppress(DatabaseBusy), self._context.db.write() as session:
            quarantine.excuse(session, self._context.worker_id)
        self._log_tail.flush()

    async def note_start(self, models: tuple[str, ...]) -> None:
        name = models[0]
        if name in self._entries and name not in self._engines:
            self._set_engines({**self._engines, name: self._engine_state(name, up=False)})
            await asyncio.to_thread(self._write, _nothing)

    async def came_up(self, models: tuple[str, ...]) -> None:
        name = models[0]
        if name not in self._entries or self._engines.get(name, {}).get("up"):
            return
        self._set_engines({**self._engines, name: self._engine_state(name, up=True)})
        if name in self._trials:
            self._trials[name] = time.monotonic()
        await asyncio.to_thread(
            self._write, partial(quarantine.record_start, host_devices=self._host_devices, model=name)
        )

    async def note_death(
        self, models: tuple[str, ...], error: Exception, suspects: Sequence[Suspect], *, starting: bool
    ) -> bool:
        name = models[0]
        if name not in self._entries or self._context.stop.is_set():
            return False
        row = {
            "id": new_id("death_"),
            "host_devices": self._host_devices,
            "model": name,
            "entry": self._entries[name],
            "worker_id": self._context.worker_id,
            "starting": starting,
            "error": str(error) or type(error).__name__,
            "suspects": [suspect.name[:_MAX_NAME] for suspect in suspects[:_MAX_SUSPECTS]],
            "lines": await asyncio.to_thread(self._last_log_lines),
            "created_at": now(),
        }
        others = {other: how for other, how in self._engines.items() if other != name}
        self._set_engines(others if starting else {**others, name: self._engine_state(name, up=False)})
        try:
            alone = await asyncio.to_thread(self._write, lambda session: self._note(session, row))
        except DatabaseBusy:  # the process ends
            return False
        log.error("engine_died" if not alone else "engine_quarantined", extra={"model": name, "reason": row["error"]})
        if alone:
            self._trials.pop(name, None)
            self._set_engines(others)
        return bool(alone)

    def _last_log_lines(self) -> list[str]:
        self._log_tail.flush()
        return self._log_tail.last()

    def _note(self, session: Session, row: Mapping[str, Any]) -> bool:
        return quarantine.note(session, EngineDeath(**row), self._bounds)

    @property
    def _engines(self) -> Mapping[str, Mapping[str, Any]]:
        return self._context.standing.engines

    def _set_engines(self, engines: Mapping[str, Mapping[str, Any]]) -> None:
        self._context.standing.engines = dict(engines)

    def _engine_state(self, name: str, *, up: bool) -> dict[str, Any]:
        return {"entry": self._entries[name], "up": up, "since": now()}

    def _may_try(self, name: str) -> bool:
        begin = partial(quarantine.begin_trial, worker_id=self._context.worker_id, bounds=self._bounds)
        if not self._write(partial(begin, host_devices=self._host_devices, model=name)):
            return False
        self._trials[name] = None
        return True

    def _settle(self) -> None:
        """Release engines on trial that have lived for as long as deaths count."""
        at = time.monotonic()
        for name, since in list(self._trials.items()):
            if since is not None and at - since >= self._bounds.seconds:
                end = partial(quarantine.end_trial, worker_id=self._context.worker_id)
                self._write(partial(end, host_devices=self._host_devices, model=name))
                self._trials.pop(name, None)
                log.warning("engine_released", extra={"model": name})

    def _write(self, work: Callable[[Session], object]) -> object:
        """Run `work` in one transaction with the list of this worker's engines."""

        def both(session: Session) -> object:
            result = work(session)
            quarantine.set_engines(session, self._context.worker_id, self._host_devices, self._engines)
            return result

        return self._context.db.retrying(both, self._context.stop)


def _nothing(_session: Session) -> None:
    """Do nothing: only the list of engines is written."""
