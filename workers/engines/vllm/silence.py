"""End an engine that hangs: a kernel that never returns, a lock, a stopped process.

Its requests never end, while its worker still sends heartbeats. A healthy engine answers a ping between two steps, also
during long requests. On a busy machine, and with a long prompt, a step may take minutes: an engine that makes progress
meanwhile is not silent.

    no answer, no progress          ended after the patience
    no answer, its processes work   ended after `BUSY` times the patience: it may turn in a circle
    no answer, answers go on        lives
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

#: The number of parts in which silence is measured. If this process itself was stopped, only one part is counted.
PARTS: Final = 10
#: How many times the patience an engine may compute without an answer.
BUSY: Final = 5
_MIN_SHARE: Final = 0.01  # of a core, over a part, that a process takes which computes; one that waits takes less


class EngineProgress(NamedTuple):
    """What an engine has done so far: `events` counts its answers and their parts, `cpu` its processes' seconds."""

    events: int
    cpu: float


def no_progress() -> EngineProgress:
    return EngineProgress(0, 0.0)


async def watch(
    ping: Callable[[], Coroutine[Any, Any, object]],
    is_dead: Callable[[], bool],
    patience: float,
    end: Callable[[], Awaitable[None]],
    progress: Callable[[], EngineProgress] = no_progress,
) -> None:
    """Ping the engine again and again. Call `end` and return when it was silent for `patience` seconds.

    Return also when the engine has died.
    """
    while not is_dead():
        pinging = asyncio.create_task(ping())
        try:
            answered = await _await_answer(pinging, is_dead, patience, progress)
        finally:
            pinging.cancel()
        if not answered:
            log.error("engine_silent", extra={"seconds": patience})
            await end()
            return
        if pinging.done() and not pinging.cancelled() and (error := pinging.exception()) and not is_dead():
            log.warning("engine_ping_failed", extra={"error": type(error).__name__})
        await asyncio.sleep(patience / PARTS)


async def _await_answer(
    pinging: "asyncio.Task[object]",
    is_dead: Callable[[], bool],
    patience: float,
    progress: Callable[[], EngineProgress],
) -> bool:
    """Wait until the engine answers the ping or dies; return False when it was silent for too long before."""
    silent = busy = 0  # parts without any progress, and with no other than CPU time
    before = progress()
    while silent < PARTS and busy < PARTS * BUSY:
        done, _pending = await asyncio.wait({pinging}, timeout=patience / PARTS)
        if done or is_dead():
            return True
        now = progress()
        if now.events > before.events:
            silent = busy = 0
        elif now.cpu - before.cpu > _MIN_SHARE * patience / PARTS:
            silent, busy = 0, busy + 1
        else:
            silent, busy = silent + 1, busy + 1
        before = now
    return False
