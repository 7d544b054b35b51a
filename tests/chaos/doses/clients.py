"""Doses of slow and silent clients for the API.

F21  five hundred of them send nothing, or a byte a second, and come again when they are sent away; web may have 256
     descriptors: other requests are answered meanwhile
"""

import asyncio
import random
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import httpx2
import psutil

from tests.chaos.doses.deployment import Answer, Posting, Site, line, site
from tests.chaos.doses.dose import Given, Outcome, p95
from tests.chaos.doses.intake import answered, exist
from tests.support.system import pause

_CLIENTS = 500
_DESCRIPTORS = 256
_SECONDS = 60.0
_RATE = 5.0
_HEALTH_SECONDS = 2.0
_DRAIN_SECONDS = 60.0
_AGAIN_SECONDS = 0.2

_GET: Final = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
_POST: Final = (
    b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n"
)
#: What each kind sends at once; then all send a byte a second, but those who send nothing more.
_KINDS: Final = {
    "say nothing": (b"", b""),
    "send a head slowly": (_GET, b"X"),
    "stay when they were answered": (_GET + b"\r\n", b""),
    "send a body slowly, without a key": (_POST, b" "),
}


@dataclass(slots=True)
class Slow:
    """Clients on a thread of their own, as many of each kind; each comes again when it was sent away."""

    port: int
    count: int
    rng: random.Random
    came: int = 0
    _open: int = 0
    most: int = 0  # at once
    _stop: asyncio.Event = field(init=False)

    @contextmanager
    def going_on(self) -> Iterator["Slow"]:
        loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(self._run()), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join(30)
            loop.close()

    async def _run(self) -> None:
        kinds = list(_KINDS.values())
        tasks = [asyncio.create_task(self._one(*kinds[n % len(kinds)])) for n in range(self.count)]
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, first: bytes, then: bytes) -> None:
        await asyncio.sleep(self.rng.random())
        while not self._stop.is_set():
            with suppress(OSError):
                await self._come(first, then)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _come(self, first: bytes, then: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.came += 1
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            writer.write(first)
            while not reader.at_eof():
                writer.write(then)
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await reader.read(4096)
        finally:
            self._open -= 1
            writer.transport.abort()


def slow_clients(given: Given) -> Outcome:
    seconds = max(10.0, _SECONDS * given.share)
    outcome = Outcome(f"{_CLIENTS} slow clients for {seconds:g} s, web may have {_DESCRIPTORS} descriptors")
    with site(given) as made:
        web = psutil.Process(made.system.pid("web"))
        web.rlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
        file_id = made.upload(line("r0", "Say the word"))
        with Slow(made.system.port, _CLIENTS, given.rng).going_on() as slow:
            pause(3)
            with Posting(made, file_id, _RATE).going_on() as posting:
                told = _asked(made, seconds)
        if not made.await_ended(_DRAIN_SECONDS):
            outcome.violations.append(f"not all ended within {_DRAIN_SECONDS:g} s")
        outcome.judge(
            f"{slow.came} connections, {slow.most} at once", *([] if slow.most > 100 else ["that is no crowd"])
        )
        healthy(outcome, told)
        answered(outcome, posting.answers)
        outcome.judge("none is refused", *(f"{one.key}: {one.status}" for one in posting.answers if one.status != 200))
        outcome.judge(f"{len(posting.answers)} jobs, one for each key", *exist(posting.answers, made.jobs())[:10])
        same = web.is_running() and web.pid == made.system.pid("web")
        outcome.judge("the same web process", *([] if same else ["it was started again"]))
    return outcome


def healthy(outcome: Outcome, told: list[Answer]) -> None:
    """Judge the answers to questions for health: each has status 200 and came in time."""
    wrong = [f"{one.key}: {one.status} {one.told}" for one in told if one.status != 200]
    outcome.judge(f"{len(told)} times asked for its health", *wrong[:5])
    times = [one.seconds for one in told]
    outcome.at_most("answered after, worst", max(times, default=float("inf")), _HEALTH_SECONDS, " s")
    outcome.judge(f"answered after {p95(times):.3f} s (p95)")


def _asked(made: Site, seconds: float) -> list[Answer]:
    """Health, on a connection of its own each time."""
    told: list[Answer] = []
    for number in range(int(seconds * 2)):
        path, began = "readyz" if number % 2 else "livez", time.monotonic()
        try:
            said = httpx2.get(f"{made.system.url}/{path}", timeout=30)
        except httpx2.HTTPError as error:
            told.append(Answer(path, 0, time.monotonic() - began, told=repr(error)))
        else:
            told.append(Answer(path, said.status_code, time.monotonic() - began))
        pause(0.5)
    return told
