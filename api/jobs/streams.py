"""Streams: a job's events as SSE, its finished lines as JSONL, a project's events as SSE.

All of them query SQL twice a second in the thread pool, and hold no transaction meanwhile. A project's streams with one
key share the query for the bounds of its feed, and query their events only when these have moved. They end with the
job, with the process, when their key is revoked, and when their client leaves.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import CallContext
from api.http import sse
from api.http.sse import check_key, stop_on_revocation
from api.jobs.schemas import JobEvent, ProjectEvent, show_event, show_project_event
from api.shares import run_in_threadpool
from jobs.errors import DatabaseBusy, NotFound
from jobs.files.tables import File
from jobs.ledger import events, feed
from jobs.ledger.states import TERMINAL
from jobs.ledger.tables import Job, Segment
from jobs.platform.storage import CHUNK, Storage

log = logging.getLogger(__name__)
T = TypeVar("T")

_EVENTS_AT_ONCE = 100


def follow_events(call: CallContext, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Return server-sent events of a job behind `after`; the id of each is its `seq`."""
    return stop_on_revocation(_job_events(call, job_id, after))


def follow_project(call: CallContext, after: int) -> AsyncIterator[bytes]:
    """Return server-sent events of a project behind `after`; the id of each is its `position`."""
    return stop_on_revocation(_project_events(call, after))


def follow_results(call: CallContext, job_id: str, *, follow: bool) -> AsyncIterator[bytes]:
    """Return each finished line once, as in the output or error file.

    For an ended job, return the files, unrun lines included.
    """
    return stop_on_revocation(_results(call, job_id, follow=follow))


class _Look(NamedTuple):
    """The result of one query. `full`: there may be more already. `over`: there will be no more.

    `after` is where the next query begins; a failed query is repeated from the same position.
    """

    events: list[bytes]
    after: int
    full: bool = False
    over: bool = False


async def _job_events(call: CallContext, job_id: str, after: int) -> AsyncIterator[bytes]:
    def look(after: int, session: Session) -> _Look:
        ended = _ended(session, job_id)  # queried first: rows that are committed later are found by the next query
        rows = events.after(session, job_id, after, _EVENTS_AT_ONCE)
        full = len(rows) == _EVENTS_AT_ONCE
        shown = [_encode(event, event.seq) for event in map(show_event, rows)]
        return _Look(shown, rows[-1].seq if rows else after, full, ended and not full)

    async for piece in _follow(call, b": the events of a job\n\n", after, look):
        yield piece


async def _project_events(call: CallContext, after: int) -> AsyncIterator[bytes]:
    def look(after: int, session: Session) -> _Look:
        rows = feed.after(session, call.project_id, after, _EVENTS_AT_ONCE)
        if feed.bounds(session, call.project_id).removed > after:
            return _Look([], after, over=True)  # the client reconnects, and gets 410
        shown = [show_project_event(row) for row in rows]
        written = [_encode(event, event.position) for event in shown]
        return _Look(written, shown[-1].position if shown else after, len(shown) == _EVENTS_AT_ONCE)

    def bounds() -> feed.FeedBounds:
        with call.db.read() as session:
            check_key(session, call)
            return feed.bounds(session, call.project_id)

    async def moved(after: int) -> bool:
        return max(await call.services.feed_bounds.get(call.caller.key_id.encode(), bounds)) > after

    async for piece in _follow(call, b": the events of a project\n\n", after, look, moved):
        yield piece


def _encode(event: JobEvent | ProjectEvent, at: int) -> bytes:
    return sse.event(event.model_dump_json().encode(), kind=event.type, at=str(at))


async def _is_always_due(_after: int) -> bool:
    return True


async def _follow(
    call: CallContext,
    greeting: bytes,
    after: int,
    look: Callable[[int, Session], _Look],
    moved: Callable[[int], Awaitable[bool]] = _is_always_due,
) -> AsyncIterator[bytes]:
    """Yield the events that `look` returns until it is over. `moved` says whether there is anything to look for.

    Raises: KeyRevoked.
    """
    timings, quiet = call.services.timings, 0.0
    yield greeting
    while not call.services.draining.is_set():
        result = _Look([], after)
        with suppress(DatabaseBusy):  # keep the stream alive meanwhile
            if await moved(after):
                result = await _look(call, partial(look, after))
        after = result.after
        for event in result.events:
            yield event
        if result.over:
            return
        if result.full:
            continue
        await asyncio.sleep(timings.job_look)
        quiet = 0.0 if result.events else quiet + timings.job_look
        if quiet >= timings.job_keep_alive:
            quiet = 0.0
            yield sse.KEEP_ALIVE


async def _results(call: CallContext, job_id: str, *, follow: bool) -> AsyncIterator[bytes]:
    files = await _patiently(call, lambda session: _files(session, call, job_id))
    if files is not None:
        for path in files:
            async for data in _read_whole(call.storage, path):
                yield data
        return
    seen: set[tuple[int, int, int]] = set()
    while not call.services.stopping.is_set():
        fresh, over = await _patiently(call, lambda session: _segments(session, job_id, seen)) or ([], True)
        for key, path in fresh:
            seen.add(key)
            async for data in _records(call.storage, path):
                yield data
        if over or not follow or call.services.draining.is_set():
            return
        await asyncio.sleep(call.services.timings.job_look)


async def _patiently(call: CallContext, look: Callable[[Session], T]) -> T | None:
    """Repeat `look` until the database is not busy; return None if this process stops before.

    Raises: KeyRevoked.
    """
    while not call.services.stopping.is_set():
        try:
            return await _look(call, look)
        except DatabaseBusy:
            await asyncio.sleep(call.services.timings.job_look)
    return None


async def _look(call: CallContext, look: Callable[[Session], T]) -> T:
    """Run `look` in a thread.

    Raises: DatabaseBusy, KeyRevoked.
    """

    def work() -> T:
        with call.db.read() as session:
            check_key(session, call)
            return look(session)

    return await run_in_threadpool(work)


def _ended(session: Session, job_id: str) -> bool:
    return session.scalar(select(Job.state).where(Job.id == job_id)) in TERMINAL


def _files(session: Session, call: CallContext, job_id: str) -> list[str] | None:
    """Return the paths of an ended job's results; None while it is live."""
    job = session.get_one(Job, job_id)
    if job.state not in TERMINAL:
        return None
    ids = [file_id for file_id in (job.output_file_id, job.error_file_id) if file_id]
    visible = select(File.id, File.path).where(
        File.id.in_(ids), File.project_id == call.project_id, File.deleted_at.is_(None)
    )
    paths = dict(session.execute(visible).all())
    return [paths[file_id] for file_id in ids if file_id in paths]


def _segments(
    session: Session, job_id: str, seen: set[tuple[int, int, int]]
) -> tuple[list[tuple[tuple[int, int, int], str]], bool]:
    """Return new segments, and whether they are the last."""
    ended = _ended(session, job_id)  # queried first: rows that are committed later are found by the next query
    rows = session.execute(
        select(Segment.n, Segment.epoch, Segment.seq, Segment.path)
        .where(Segment.job_id == job_id)
        .order_by(Segment.created_at)
    )
    fresh = [((n, epoch, seq), path) for n, epoch, seq, path in rows if (n, epoch, seq) not in seen]
    return fresh, ended


async def _records(storage: Storage, path: str) -> AsyncIterator[bytes]:
    """Yield the lines of one segment, without the prefix of the ledger."""
    lines = _read(storage, path, lambda handle: handle.readlines(CHUNK))
    async for batch in iterate_in_thread(lines):
        yield b"".join(line.split(b"\t", 2)[2] for line in batch)


async def _read_whole(storage: Storage, path: str) -> AsyncIterator[bytes]:
    async for data in iterate_in_thread(_read(storage, path, lambda handle: handle.read(CHUNK))):
        yield data


def _read(storage: Storage, path: str, take: Callable[[Any], T]) -> Iterator[T]:
    """Yield pieces of an object; none if retention has removed it."""
    try:
        with storage.reader(path) as handle:
            while piece := take(handle):
                yield piece
    except NotFound:
        return


async def iterate_in_thread(pieces: Iterator[T]) -> AsyncIterator[T]:
    """Run each step of an iterator in a thread."""
    end = object()
    try:
        while (piece := await run_in_threadpool(next, pieces, end)) is not end:
            yield piece  # type: ignore[misc]
    finally:
        close: Callable[[], None] = pieces.close  # type: ignore[attr-defined]
        close()
