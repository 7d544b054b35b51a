"""An engine that hangs is not dead: what is in flight never ends, and its worker beats. So it is asked for a sign.

A kernel that never returns, a lock, a stopped process. vLLM answers a call between two steps: its answer says that
steps end, however long the requests are.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)
#: The time is counted in so many parts: of one in which this process itself stood still, only that part counts.
PARTS: Final = 10


async def watch(
    ping: Callable[[], Coroutine[Any, Any, object]],
    is_dead: Callable[[], bool],
    patience: float,
    end: Callable[[], Awaitable[None]],
) -> None:
    """Call `end` when no answer has come for `patience` seconds. Returns then, and when the engine dies by itself."""
    while not is_dead():
        asked = asyncio.create_task(ping())
        try:
            answered = await _answered(asked, is_dead, patience)
        finally:
            asked.cancel()
        if not answered:
            log.error("engine_silent", extra={"seconds": patience})
            await end()
            return
        if asked.done() and not asked.cancelled() and (error := asked.exception()) and not is_dead():
            log.warning("engine_not_asked", extra={"error": type(error).__name__})
        await asyncio.sleep(patience / PARTS)


async def _answered(asked: "asyncio.Task[object]", is_dead: Callable[[], bool], patience: float) -> bool:
    """Or died: whoever asks it will be told."""
    for _ in range(PARTS):
        done, _pending = await asyncio.wait({asked}, timeout=patience / PARTS)
        if done or is_dead():
            return True
    return False
