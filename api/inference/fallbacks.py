"""Ask the fallbacks of an alias, in their order and each once, while the client has nothing of an answer.

    target ─▶ it fails, or is silent for `fallback_after` seconds ─▶ the next fallback that live workers serve ─▶ …
       └─▶ its answer begins, or refuses the request ─▶ the client

An answer that has begun is never given to another model. What was asked before is over then: cancelled in its engine,
counted, and its reservations settled.
"""

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from api.deps import CallContext, ModelTarget
from api.inference.targets import find_target
from jobs.errors import NightmillError, NotBegun, NoWorker, Overloaded, WorkerLost
from jobs.fleet.access import Work
from jobs.inference.interactive import AnswerEntry

Answer = tuple[AnswerEntry, AsyncGenerator[AnswerEntry]]
#: Ask a model; give up where the answer has not begun within these seconds.
Ask = Callable[[ModelTarget, float], Awaitable[Answer]]

#: What befalls the request for one model, not each request of the client or of this server.
_FAILURES: Final = (NotBegun, NoWorker, Overloaded, WorkerLost)


async def ask_in_order(call: CallContext, work: Work, target: ModelTarget, limit: int | None, ask: Ask) -> Answer:
    """Return the first entry of an answer, and the entries after it: of the target, or of the first model that answers.

    `work` was drawn, and has the `target`. While there is a fallback, an answer has `limit` seconds to begin. Where all
    fail, the failure is that of the last one. Raises the errors of `ask`.
    """
    while True:
        seconds = limit if limit and await _find_next(call, work, target) else math.inf
        try:
            first, entries = await ask(target, seconds)
        except _FAILURES:
            following = await _find_next(call, work, target)
            if following is None:
                raise
        else:
            is_failure = first.kind == "end" and first.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            following = await _find_next(call, work, target) if is_failure else None
            if following is None:
                return first, entries
            await entries.aclose()
        target = following


async def _find_next(call: CallContext, work: Work, target: ModelTarget) -> ModelTarget | None:
    """Return the first fallback after a target that takes requests; None where there is none."""
    for index, model in enumerate(target.fallbacks, 1):
        with suppress(NightmillError):
            return await find_target(call, replace(work, model=model, fallbacks=target.fallbacks[index:]))
    return None
