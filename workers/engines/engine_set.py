"""The engines of one worker process: those that run, and those that are suspended because they died too often.

    start ──▶ running ── died, `health` says that it is enough ──▶ suspended ── resume ──▶ running
                 └────── died, else ──▶ the next `start` builds it again

The models of a suspended engine are not served, and nothing builds it until `resume`.
"""

import asyncio
import logging
from collections.abc import Sequence

from workers.engines.foreign_errors import ForeignCall
from workers.engines.http.http_engine import HttpEngine
from workers.engines.port import Engine, EngineDead, EngineHealth, Phased, Suspect

log = logging.getLogger(__name__)
_CLOSING_SECONDS = 30.0  # for an engine that is suspended


class EngineSet:
    """Start, suspend and resume engines. Every method but `suspend` runs on the engines' loop."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.running = tuple(engines)
        self.suspended: tuple[Engine, ...] = ()
        self.health: EngineHealth | None = None  # without it every engine that dies is built again

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for engine in self.running for name in engine.models))

    @property
    def own(self) -> tuple[Engine, ...]:
        """Return the running engines that are in this process."""
        return tuple(engine for engine in self.running if not isinstance(engine, HttpEngine))

    @property
    def servers(self) -> tuple[HttpEngine, ...]:
        """Return the running engines that ask servers."""
        return tuple(engine for engine in self.running if isinstance(engine, HttpEngine))

    def phase_of(self, name: str) -> str:
        """Return what the engine of the model `name` does while it starts; empty where it does not say so."""
        engine: object = next(
            (candidate for candidate in (*self.running, *self.suspended) if name in candidate.models), None
        )
        return engine.phase if isinstance(engine, Phased) else ""

    def find(self, name: str) -> Engine | None:
        """Return the running engine that has the model `name`."""
        for engine in self.running:
            if name in engine.models:
                return engine
        return None

    def find_dead(self, death: EngineDead) -> Engine | None:
        """Return the engine of this process that has died; None where it is not known."""
        own = self.own
        if not death.models and len(own) == 1:
            return own[0]
        return next((engine for engine in own if engine.models == death.models), None)

    def add(self, engine: Engine) -> None:
        self.running = (*self.running, engine)

    async def start(self) -> None:
        """Start the engines that do not run; if any of them fails, the others run and its error is raised."""
        outcomes = await asyncio.gather(*(self._start(engine) for engine in self.running), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def handle_death(self, engine: Engine, error: Exception, suspects: Sequence[Suspect]) -> None:
        """Suspend `engine`, which has died, if that is enough; otherwise `start` builds it again."""
        if await self._is_over(engine, error, suspects, starting=False):
            await self._close_off(engine)

    def suspend(self, engine: Engine) -> None:
        """Serve the models of `engine` no more. It must not have been built, or be closed afterwards."""
        self.running = tuple(other for other in self.running if other is not engine)
        self.suspended = (*self.suspended, engine)

    async def resume(self, engine: Engine) -> None:
        """Build `engine`, which is suspended; it stays so if it does not come up."""
        error = await self._build(engine)
        if error is not None:
            log.error("engine_trial_failed", exc_info=error, extra={"models": engine.models})
            await self._is_over(engine, error, (), starting=True)
        self.suspended = tuple(other for other in self.suspended if other is not engine)
        if error is None:
            self.running = (engine, *self.running)
        else:
            await self._close_off(engine)

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in (*self.running, *self.suspended)))

    async def _start(self, engine: Engine) -> None:
        """Start `engine`, or suspend it where it is not to be built again.

        Raises:
            Exception: The error that kept the engine from starting, unless the engine was suspended for it.
        """
        if isinstance(engine, HttpEngine):
            await engine.start()
            return
        if (error := await self._build(engine)) is not None:
            if not await self._is_over(engine, error, (), starting=True):
                raise error
            await self._close_off(engine)

    async def _build(self, engine: Engine) -> Exception | None:
        """Load `engine`; return what kept it from coming up."""
        with ForeignCall() as building:
            if self.health is not None:
                await self.health.note_start(engine.models)
            await engine.start()
            if self.health is not None:
                await self.health.came_up(engine.models)
        return building.error

    async def _is_over(self, engine: Engine, error: Exception, suspects: Sequence[Suspect], *, starting: bool) -> bool:
        return self.health is not None and await self.health.note_death(
            engine.models, error, suspects, starting=starting
        )

    async def _close_off(self, engine: Engine) -> None:
        """Suspend `engine`, and free what it has."""
        self.suspend(engine)
        with ForeignCall() as closing:  # an engine that failed may fail once more
            await asyncio.wait_for(engine.close(), _CLOSING_SECONDS)
        if closing.error is not None:
            log.error("engine_close_failed", exc_info=closing.error, extra={"models": engine.models})
