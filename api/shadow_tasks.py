"""The requests for shadows of this process, which no client waits for: so many at once, of so many bytes."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

_MAX_TASKS: Final = 256
_MAX_BYTES: Final = 64 << 20


class ShadowTasks:
    """The running tasks, counted by alias. For one event loop."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[None]]()
        self._running = Counter[tuple[str, str]]()
        self._bytes = 0

    def start(
        self, alias: tuple[str, str], limit: int, size: int, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> bool:
        """Run `work` with a request of `size` bytes; return False where `limit` tasks of the alias run, or too many."""
        is_full = len(self._tasks) >= _MAX_TASKS or self._bytes + size > _MAX_BYTES
        if is_full or self._running[alias] >= limit:
            return False
        task = asyncio.create_task(work())
        self._tasks.add(task)
        self._running[alias] += 1
        self._bytes += size

        def end(_: object) -> None:
            self._tasks.discard(task)
            self._running[alias] -= 1
            if not self._running[alias]:
                del self._running[alias]
            self._bytes -= size

        task.add_done_callback(end)
        return True

    async def close(self) -> None:
        """End the tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
