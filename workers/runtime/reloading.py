"""A models file that has changed: what its worker processes make of it while they run.

servers (engine http)         asked from now on, or no more; those that stay go on with what they are at
what this process has loaded  if that is something else now, it ends: it is started again, and loads it
names, and models of others   known at once
a file that is wrong          changes nothing
"""

import logging
from collections.abc import Callable

from jobs.fleet.models_file import ModelsFileError, Registry
from jobs.platform.limiters import SharedExclusiveLock
from workers.engines.build_engines import outdated, refresh
from workers.engines.router import Router
from workers.runtime.context import Context
from workers.runtime.engine_host import EngineHost

log = logging.getLogger(__name__)


class Reloading:
    """Of one process. `end` has it end cleanly; `company` is who else asks servers, should it come to have some."""

    def __init__(
        self,
        context: Context,
        host: EngineHost,
        engine: Router,
        queue: str,
        company: SharedExclusiveLock,
        end: Callable[[], None],
    ) -> None:
        self._context, self._host, self._engine, self._queue = context, host, engine, queue
        self._company, self._end = company, end
        self._seen = engine.registry

    def look(self) -> None:
        """Not on the engines' loop."""
        registry = self._context.models.now()
        if registry is self._seen:
            return
        self._seen = registry
        try:
            ends = outdated(self._engine.registry, registry, self._queue)
        except ModelsFileError as error:
            log.error("models_file.rejected", extra={"file": str(registry.file), "reason": str(error)})  # noqa: TRY400
            return
        if ends:
            log.warning("models_changed", extra={"queue": self._queue, "file": str(registry.file)})
            self._end()
        else:
            self._host.call(self._refresh(registry)).result()

    async def _refresh(self, registry: Registry) -> None:
        await refresh(self._engine, self._context.config, registry, self._queue)
        if self._engine.shared:
            self._host.share(self._company)
