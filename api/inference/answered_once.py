"""An answer that is kept once, though it is asked for twice.

key       leased while the model takes its time ─▶ kept with the answer's row
stream    shown by several connections, one after another or at once ─▶ whoever shows its end first keeps it

Of a stream each connection that comes to its end has the same to keep: two at the same moment write the same object,
and the row of one of them stays.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.http.idempotency import Lease, Make, Once
from api.shares import run_in_threadpool
from jobs.db.base import Base
from jobs.errors import DatabaseBusy
from jobs.ledger.tables import Audit
from jobs.platform.storage import let_go


class Reference(BaseModel):
    """What an Idempotency-Key remembers: what was said lies in one place only."""

    id: str


Answered = dict[str, Any]
#: Runs in one transaction what makes a row.
Run = Callable[[Make], object]


async def answered_once(
    once: Once,
    fields: Mapping[str, Any],
    answer: Callable[[], Awaitable[Answered | Response]],
    keep: Callable[[Answered, Run], None],
    load: Callable[[str], Answered],
    show: Callable[[Answered], Answered] = dict,
) -> Response:
    """What `answer` gives, when `keep` has kept it, or its refusal; of a key that is known what `load` has. Of either
    the client is told what `show` shows.

    Raises InFlight, IdempotencyMismatch, and what these raise.
    """
    async with once.leased() as lease, _beating(lease):
        if lease.kept is not None:
            said = await run_in_threadpool(once.replay, fields)
            assert said is not None, "the key was kept a moment ago"
            return as_json(show(await run_in_threadpool(load, referred(said))), replayed=True)
        answered = await answer()
        if isinstance(answered, Response):
            await run_in_threadpool(lease.drop)
            return answered
        await run_in_threadpool(keep, answered, partial(lease.complete, fields))
        return as_json(show(answered))


def keep_once(
    call: CallContext,
    table: type[Base],
    action: str,
    kept_id: str,
    path: str,
    keep: Callable[[Run], None],
) -> None:
    """Have `keep` write the object of an answer and run what makes its row; not where another connection did.

    It stays kept once, also when it was deleted meanwhile: the audit knows of it for ever.
    """

    def run(work: Make) -> None:
        try:
            with call.db.write() as session:
                if not _found(session, action, kept_id):
                    work(session)
                    return
                deleted = session.get(table, kept_id) is None
            if deleted:  # its object was written anew a moment ago
                let_go(call.storage, [path])
        except IntegrityError:  # at the same moment
            with call.db.read() as session:
                if not _found(session, action, kept_id):
                    raise

    with call.db.read() as session:
        if _found(session, action, kept_id):  # its object is not to be written again
            return
    keep(run)


def _found(session: Session, action: str, kept_id: str) -> bool:
    mine = Audit.target == kept_id, Audit.action == action
    return session.scalar(select(Audit.id).where(*mine).limit(1)) is not None


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
