"""Limit what one project uses of this process: threads, open streams, and bytes of JSON bodies and of conversations.

    request ─▶ share of its project ─┬─ a thread is free within 5 s, and so are the bytes ─▶ route
                                     └─ 429 with Retry-After

A project has 10 of the 40 threads, so the requests of other projects always find one. A request that was admitted is
never refused later: it waits for a thread of its project. Brief checks during a stream or an upload use no thread of
the project, so that its long work does not delay them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio.lowlevel import RunVar

from jobs.errors import TooManyRequests
from jobs.platform.limiters import Limit
from jobs.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

#: Threads that read large bodies; they compete with the event loop for the interpreter.
_READERS = 2


class ProjectBusy(TooManyRequests):
    """A request beyond the project's share of this API process."""

    text = "This project has too many requests in progress. Send this one again in a moment."
    retry_after = 1


class ProjectShare:
    """The resources that a project may use at once on one event loop.

    The resources are threads, one reader of large bodies, `bodies` in bytes, `cached` bytes of WebSockets between two
    requests, and open `streams`, downloads included.
    """

    def __init__(self, threads: int, body_bytes: int, patience: float = 0.0, streams: int = 1) -> None:
        self.threads = Limit(threads)
        self.reader = Limit(1)
        self.bodies = Limit(body_bytes)
        self.cached = Limit(body_bytes)
        self.streams = Limit(streams)
        self._patience = patience

    @asynccontextmanager
    async def thread(self) -> AsyncIterator[None]:
        """Hold one of the project's threads.

        Raises: ProjectBusy, if none is free within `patience` seconds.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self.threads.acquire()
        except TimeoutError:
            raise ProjectBusy from None
        try:
            yield
        finally:
            self.threads.release()


class RequestShare:
    """The part of its project's share that a request uses until it is answered."""

    def __init__(self, share: ProjectShare) -> None:
        self.share = share
        self._reserved = self._streams = 0

    def reserve(self, size: int) -> None:
        """Take `size` bytes for what the current request reads into memory.

        Raises: ProjectBusy, if fewer are free.
        """
        if not self.share.bodies.try_acquire(size):
            raise ProjectBusy("The requests of this project in progress have too many bytes. Send this one again.")
        self._reserved += size

    def open_stream(self) -> None:
        """Count the current request as a stream until it is answered.

        Raises: ProjectBusy, if its project has too many.
        """
        if not self.share.streams.try_acquire(1):
            raise ProjectBusy("This project has too many open streams and downloads. Close one, or ask for pages.")
        self._streams += 1

    def release(self) -> None:
        """Release all bytes and streams."""
        self.share.bodies.release(self._reserved)
        self.share.streams.release(self._streams)


#: The usage of the request that is served; None while its project is unknown.
current: ContextVar[RequestShare | None] = ContextVar("usage", default=None)
_shares: RunVar[WeakValueDictionary[str, ProjectShare]] = RunVar("shares")
_readers: RunVar[Limit] = RunVar("readers")


def share_of(project_id: str, config: Settings, patience: float) -> ProjectShare:
    """Return the share of a project, which exists for as long as a request refers to it."""
    shares = _get_or_make(_shares, WeakValueDictionary)
    share = shares.get(project_id)
    if share is None:  # a body of the largest size is accepted when no other is in progress
        most_bytes = max(config.project_body_bytes, config.body_max_bytes)
        share = ProjectShare(config.project_threads, most_bytes, patience, config.project_streams)
        shares[project_id] = share
    return share


def reserve(size: int) -> None:
    """Take `size` bytes for what the current request reads into memory. Raises ProjectBusy when fewer are free."""
    usage = current.get()
    if usage is not None:
        usage.reserve(size)


def open_stream() -> None:
    """Count the current request as a stream until it is answered. Raises ProjectBusy when its project has too many."""
    usage = current.get()
    if usage is not None:
        usage.open_stream()


async def run_in_threadpool(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread of the current project, and wait for a free one as long as it takes."""
    usage = current.get()
    if usage is None:
        return await run_unshared(work, *args, **kwargs)
    async with usage.share.threads.hold():
        return await run_unshared(work, *args, **kwargs)


async def run_reader(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work`, which reads a large body, in a thread: one per project at a time, and few of all projects."""
    usage = current.get() or RequestShare(ProjectShare(1, 0))
    async with usage.share.reader.hold(), _get_or_make(_readers, lambda: Limit(_READERS)).hold():
        return await run_unshared(work, *args, **kwargs)


async def run_unshared(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread that does not count for the project: brief work that its long work must not delay."""
    return await anyio.to_thread.run_sync(lambda: work(*args, **kwargs))


def _get_or_make(variable: RunVar[T], make: Callable[[], T]) -> T:
    """Return the variable of this event loop, created if necessary."""
    try:
        return variable.get()
    except LookupError:
        variable.set(made := make())
        return made
