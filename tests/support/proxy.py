"""A TCP proxy in front of a server, which can stop carrying what it has taken, or carry it badly.

with Proxy(port) as proxy:     # the server's
    proxy.port                 # the way through it
    proxy.swallow()            # from now on nothing passes, either way; connections are taken, and stay silent
    proxy.carry()              # new connections pass again; those of before and meanwhile stay silent for good,
                               # for their clients; the server has found out meanwhile that nobody is there
    proxy.worsen(0.1, 0.05)    # each way takes 0.1 s longer, and one chunk in twenty is lost with its connection
    proxy.deafen()             # the server hears and does everything, and what it says is lost
    proxy.say(b"HTTP/1.1 500") # the server hears nothing more, and this is said in its place; the connection ends
    proxy.mend()               # all of that is over; a connection that lost an answer is reset

A chunk is what one read finds: a question or an answer, mostly. What waits for its time delays nothing behind it. How a
connection is made is not delayed.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

_LINGER = struct.pack("ii", 1, 0)  # closed with a reset, and not with an end
_WAITING = 4096  # chunks of one way, at most
_CHUNK = 1 << 16


@dataclass(eq=False, slots=True)
class _Way:
    """Hold one direction of a connection: its source and its target. `reset` ends both directions."""

    reader: asyncio.StreamReader
    source: asyncio.StreamWriter
    target: asyncio.StreamWriter
    answers: bool  # what the server says
    epoch: int
    reset: Callable[[], None]
    lazy_vectors: asyncio.Queue[tuple[float, bytes]] = field(default_factory=lambda: asyncio.Queue(_WAITING))


@dataclass(slots=True)
class Proxy:
    """On a thread of its own. `target` is a port of this machine, or the path of a Unix socket."""

    target: int | str
    port: int = 0
    rng: random.Random = field(default_factory=random.Random)
    carried: int = 0  # connections
    chunks: int = 0  # since it got worse
    resets: int = 0
    _delay: float = 0.0
    _share: float = 0.0
    _deaf: bool = False
    _said: bytes = b""
    _unread: set[_Way] = field(default_factory=set)
    _swallowing: bool = False
    _epoch: int = 0
    _backs: list[asyncio.StreamWriter] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _up: threading.Event = field(default_factory=threading.Event)
    _down: asyncio.Event = field(init=False)

    def __enter__(self) -> "Proxy":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(30)

    def swallow(self) -> None:
        self._epoch += 1
        self._swallowing = True

    def carry(self) -> None:
        assert self._loop is not None
        self._epoch += 1
        self._swallowing = False
        self._loop.call_soon_threadsafe(self._hang_up)

    def worsen(self, delay: float, resets: float) -> None:
        """Of the connections that there are too. `resets` is a share of all chunks."""
        self._delay, self._share = delay, resets

    def deafen(self) -> None:
        self._deaf = True

    def say(self, said: bytes) -> None:
        self._said = said

    def mend(self) -> None:
        assert self._loop is not None
        self.worsen(0.0, 0.0)
        self._deaf, self._said = False, b""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for way in self._unread:
            way.reset()
        self._unread.clear()

    def _hang_up(self) -> None:
        for back in self._backs:
            back.transport.abort()
        self._backs.clear()

    async def _serve(self) -> None:
        self._loop, self._down = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._down.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was aborted is closed in the next turns of the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._swallowing:
                await _drink(reader)
            else:
                await self._carry(reader, writer, self._epoch)
        except (OSError, asyncio.CancelledError):
            pass  # one of them hung up, or the proxy ends
        finally:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, epoch: int) -> None:
        self.carried += 1
        there, back = await self._open()
        self._backs.append(back)
        reset = partial(self._reset, writer, back)
        asks = _Way(reader, writer, back, answers=False, epoch=epoch, reset=reset)
        answers = _Way(there, back, writer, answers=True, epoch=epoch, reset=reset)
        try:
            await asyncio.gather(self._pump(asks), self._pump(answers))
        finally:
            back.transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection("127.0.0.1", self.target)

    async def _pump(self, way: _Way) -> None:
        """Forward bytes; the end of a swallowed connection is not forwarded either."""
        time, taking = asyncio.get_running_loop().time, asyncio.create_task(self._take(way))
        try:
            with suppress(OSError):
                while True:
                    due, data = await way.lazy_vectors.get()
                    if (wait := due - time()) > 0:
                        await asyncio.sleep(wait)
                    if not data:
                        break
                    if way.epoch == self._epoch:
                        way.target.write(data)
                        await way.target.drain()
        finally:
            taking.cancel()
        if way.epoch == self._epoch:
            way.target.close()

    async def _take(self, way: _Way) -> None:
        """Yield each chunk with the moment at which it is to arrive, and an empty one at the end."""
        time = asyncio.get_running_loop().time
        with suppress(OSError):
            while data := await way.reader.read(_CHUNK):
                if way.epoch == self._epoch and self._breaks(way):
                    break
                if not (self._deaf and way.answers):
                    await way.lazy_vectors.put((time() + self._delay, data))
        await way.lazy_vectors.put((time() + self._delay, b""))

    def _breaks(self, way: _Way) -> bool:
        """Whether a chunk is the last of its way."""
        if self._strikes():
            way.reset()
            return True
        if self._deaf and way.answers:
            self._unread.add(way)
        if self._said and not way.answers:
            way.source.write(self._said)
            return True
        return False

    def _strikes(self) -> bool:
        if not self._share:
            return False
        self.chunks += 1
        return self.rng.random() < self._share

    def _reset(self, *ends: asyncio.StreamWriter) -> None:
        """Both find out at once, and what was on its way is lost."""
        self.resets += 1
        for end in ends:
            plug = end.get_extra_info("socket")
            if plug.family == socket.AF_INET and not end.transport.is_closing():
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            end.transport.abort()


async def _drink(reader: asyncio.StreamReader) -> None:
    """Until whoever came gives up."""
    while await reader.read(_CHUNK):
        pass
