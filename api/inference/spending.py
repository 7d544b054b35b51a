"""Reserve the most that an interactive request may cost, where its project has a spend limit.

    submit ─▶ reserve ─▶ queue ─▶ entries of the answer ─▶ settle
                └─ 429          └─ none came: release

Without a limit nothing is read but a cached list of the projects that have one. A process that dies leaves its
reservation, which ends after the request's deadline.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from api.deps import CallContext
from api.shares import run_in_threadpool, run_unshared
from jobs.errors import DatabaseBusy, NotBegun, NoWorker, WorkerLost
from jobs.inference.interactive import AnswerEntry, QueuedRequest
from jobs.requests.token_estimates import input_tokens, output_tokens
from jobs.usage import budgets
from jobs.usage.prices import Prices

#: Seconds after the deadline of a request at which its reservation ends, whatever became of its process.
_GRACE = 60.0


async def reserve(call: CallContext, request: QueuedRequest, body: Mapping[str, Any]) -> "SpendReservation | None":
    """Reserve the most that a request may cost; return None where no limit holds.

    Raises SpendLimitReached, DatabaseBusy.
    """
    limited = call.services.limited_projects
    if limited.is_stale:
        await run_unshared(_refresh, call)
    if not limited.has(call.project_id):
        return None
    reservation = SpendReservation(call, request, body["model"])
    tokens = output_tokens(request.url, body)
    begun = asyncio.create_task(run_in_threadpool(reservation.begin, tokens))  # it waits for others at the limit
    try:
        await asyncio.shield(begun)
    except asyncio.CancelledError:  # the thread goes on, and may reserve
        await asyncio.gather(begun, return_exceptions=True)
        await run_unshared(reservation.end)
        raise
    return reservation


def _refresh(call: CallContext) -> None:
    with call.db.read() as session:
        call.services.limited_projects.refresh(session)


class SpendReservation:
    """The reservation of one request."""

    def __init__(self, call: CallContext, request: QueuedRequest, model: str) -> None:
        self._call, self._request, self._model = call, request, model
        self._price_source = call.services.registry().price_source
        self._is_taken = False
        self._usage: tuple[int, ...] = ()
        self._goes_on = request.linger > 0  # the engine goes on without this client, who may resume the stream

    def begin(self, output_tokens: int) -> None:
        """Add the reservation. Raises SpendLimitReached."""
        request = self._request
        size = input_tokens(len(request.body))
        with self._call.db.write() as session:
            prices = Prices(session, self._price_source)
            amount = budgets.cost(prices, self._model, input_tokens=size, output_tokens=output_tokens)
            budgets.reserve(session, request.id, self._call.project_id, amount, request.deadline + _GRACE, prices)

    async def follow(self, entries: AsyncGenerator[AnswerEntry]) -> AsyncGenerator[AnswerEntry]:
        """Yield the entries of the answer as they come, and settle the reservation at their end."""
        try:
            async with aclosing(entries):
                async for entry in entries:
                    self._note(entry)
                    yield entry
        except (NotBegun, NoWorker, WorkerLost):
            self._goes_on = False
            raise
        finally:
            await asyncio.shield(run_unshared(self.end))

    def _note(self, entry: AnswerEntry) -> None:
        self._is_taken |= entry.kind != "late"
        if entry.kind == "end":
            self._goes_on, self._usage = False, entry.usage

    def end(self) -> None:
        """Settle the reservation of a request that an engine has taken; release that of another one."""
        if self._goes_on and self._is_taken:
            return  # it ends after the request's deadline
        with suppress(DatabaseBusy), self._call.db.write() as session:  # likewise
            if not self._is_taken:
                budgets.release(session, self._request.id)
                return
            amount = None
            if self._usage:
                read, _, written, *_ = self._usage
                prices = Prices(session, self._price_source)
                amount = budgets.cost(prices, self._model, input_tokens=read, output_tokens=written)
            budgets.settle(session, self._request.id, amount)
