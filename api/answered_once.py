"""An answer that is kept, once for each `Idempotency-Key`: the key is leased while the model takes its time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.idempotency import Lease, Make, Once
from jobs.errors import DatabaseBusy


class Reference(BaseModel):
    """What an Idempotency-Key remembers: what was said lies in one place only."""

    id: str


Answered = dict[str, Any]


async def answered_once(
    once: Once,
    fields: Mapping[str, Any],
    answer: Callable[[], Awaitable[Answered | Response]],
    keep: Callable[[Answered, Callable[[Make], object]], None],
    load: Callable[[str], Answered],
) -> Response:
    """What `answer` gives, when `keep` has kept it, or its refusal; of a key that is known what `load` has.

    Raises InFlight, IdempotencyMismatch, and what these raise.
    """
    async with once.leased() as lease, _beating(lease):
        if lease.kept is not None:
            said = await run_in_threadpool(once.replay, fields)
            assert said is not None, "the key was kept a moment ago"
            return as_json(await run_in_threadpool(load, referred(said)), replayed=True)
        answered = await answer()
        if isinstance(answered, Response):
            await run_in_threadpool(lease.drop)
            return answered
        await run_in_threadpool(keep, answered, partial(lease.complete, fields))
        return as_json(answered)


def referred(said: Response) -> str:
    """The id in the answer that a key remembers."""
    return str(msgspec.json.decode(bytes(said.body))["id"])


def as_json(body: Mapping[str, Any], *, replayed: bool = False) -> Response:
    headers = {"Idempotency-Replayed": "true"} if replayed else None
    return Response(msgspec.json.encode(body), media_type="application/json", headers=headers)


@asynccontextmanager
async def _beating(lease: Lease) -> AsyncIterator[None]:
    """The key stays ours for as long as the model takes."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(lease.once.config.beat_seconds)
            with suppress(DatabaseBusy):  # the next one may come in time
                await lease.beat()

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)  # a key that was lost is found lost by `complete`
