"""Whether a project's prompts may go to external servers, as the database says now."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from jobs.db.engine import Database
from jobs.errors import DatabaseBusy
from jobs.security.tables import Project
from workers.engines.port import EngineBusy

SECONDS: Final = 2.0  # for which an answer of the database counts
_AGAIN: Final = 1.0


class ExternalPermissions:
    """Read `Project.allow_external`, at most once in `SECONDS` for each project. On the engines' loop."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="permissions")
        self._known: dict[str, tuple[bool, float]] = {}  # by project; until when it counts

    async def allows(self, project_id: str) -> bool:
        """Return whether the project allows external servers; an unknown project does not.

        Raises:
            EngineBusy: The database gives no answer now.
        """
        if (known := self._recent(project_id)) is not None:
            return known
        async with self._lock:
            if (known := self._recent(project_id)) is not None:
                return known
            try:
                allowed = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, project_id)
            except DatabaseBusy as error:
                raise EngineBusy(error.message, retry_after=_AGAIN) from error
            self._known[project_id] = allowed, self._clock() + SECONDS
            return allowed

    def _recent(self, project_id: str) -> bool | None:
        allowed, until = self._known.get(project_id, (False, 0.0))
        return allowed if self._clock() < until else None

    def _read(self, project_id: str) -> bool:
        with self._db.read() as session:
            project = session.get(Project, project_id)
            return project is not None and project.allow_external
