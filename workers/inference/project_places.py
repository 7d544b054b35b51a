"""What one worker holds of a request queue for each project: requests that an engine answers, and others that wait.

    request ──▶ enter ──▶ place ──▶ engine        a project has so many places, and its other requests wait for these
                  └── refused: the project has too many here, or too large ones

No project waits for another one's requests.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

HELD_BYTES: Final = 64 << 20


@dataclass(slots=True)
class _Held:
    """Requests of one project, and the bytes of their bodies."""

    gate: asyncio.Semaphore
    requests: int = 0
    size: int = 0


class ProjectPlaces:
    """Let each project have `places` requests answered at once, and `waiting` more wait. For one event loop.

    `nobody_waits` is set while no request waits for a place.
    """

    def __init__(self, places: int, waiting: int, held_bytes: int = HELD_BYTES) -> None:
        self._places, self._most, self._held_bytes = places, places + waiting, held_bytes
        self._projects: dict[str, _Held] = {}
        self._waiting = 0
        self.nobody_waits = asyncio.Event()
        self.nobody_waits.set()

    def enter(self, project: str, size: int) -> bool:
        """Count a request of `size` bytes in; return False where the project has too many here already."""
        held = self._projects.get(project) or _Held(asyncio.Semaphore(self._places))
        if held.requests and (held.requests >= self._most or held.size + size > self._held_bytes):
            return False
        self._projects[project] = held
        held.requests += 1
        held.size += size
        self._count(held.requests > self._places)
        return True

    def leave(self, project: str, size: int) -> None:
        """Count out a request that was counted in."""
        held = self._projects[project]
        self._count(-(held.requests > self._places))
        held.requests -= 1
        held.size -= size
        if not held.requests:
            del self._projects[project]

    @asynccontextmanager
    async def place(self, project: str) -> AsyncIterator[None]:
        """Wait for a place of the project, and hold it; for a request that was counted in."""
        async with self._projects[project].gate:
            yield

    def _count(self, change: int) -> None:
        self._waiting += change
        (self.nobody_waits.clear if self._waiting else self.nobody_waits.set)()
