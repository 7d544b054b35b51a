"""A further question of a request that has been paid for in part: a busy moment does not throw that away.

first question ── busy ──▶ EngineBusy: nothing is lost, the request comes back as often as it takes
a further one  ── busy ──▶ wait, again, again ──▶ EngineFault: it counts, or it would be paid for without end
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from workers.engines.port import Answer, EngineBusy, EngineFault, Usage, refusal

_TIMES: Final = 5
_PAUSE: Final = 1.0
_LONGEST: Final = 5.0
_BUSY: Final = refusal(503, "The engine stayed busy with a part of this request. Ask again.", code="engine_busy")


async def patiently(ask: Callable[[], Awaitable[Answer]], paid: Callable[[], Usage | None]) -> Answer:
    """`paid`: what the request has cost, if it has. Raises EngineFault, and what `ask` raises."""
    left = _TIMES
    while True:
        try:
            return await ask()
        except EngineBusy as busy:
            spent, left = paid(), left - 1
            if spent is None:
                raise
            if not left:
                raise EngineFault("The engine stayed busy.", replace(_BUSY, usage=spent)) from busy
            pause = min(busy.retry_after or _PAUSE, _LONGEST)
        await asyncio.sleep(pause)
