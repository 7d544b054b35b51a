"""A pooler in front of PostgreSQL that does to its clients what PgBouncer does in transaction mode.

with Pooler(url) as through:       # the URL of the way through it
    Database(through)

It refuses startup options, makes up the process number of each connection, and gives each transaction one of its few
connections to the server, the one that was given back last. Whatever a client leaves in a session is found by another.

Source of the messages: postgresql.org/docs/current/protocol-message-formats.html
"""

import asyncio
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import make_url

_PROTOCOL_3, _SSL, _CANCEL, _GSS = 196_608, 80_877_103, 80_877_102, 80_877_104
_REFUSED = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
_MADE_UP = struct.pack("!ii", 1, 2)  # a process number that no server process has, and a secret
_Message = tuple[bytes, bytes]


@dataclass(eq=False, slots=True)
class _Server:
    """A connection to the server, with the parameters that it began with."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    parameters: list[bytes] = field(default_factory=list)


class Pooler:
    """Run on a thread of its own, with `size` connections to the server of `url`, which trusts everybody."""

    def __init__(self, url: str, size: int = 3) -> None:
        self._url = make_url(url)
        self._size = size
        self._free: asyncio.LifoQueue[_Server]
        self._loop: asyncio.AbstractEventLoop
        self._down: asyncio.Event
        self._up = threading.Event()
        self._port = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        assert self._up.wait(30)
        way = self._url.set(host="127.0.0.1", port=self._port, query={})
        return way.render_as_string(hide_password=False)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(30)

    async def _run(self) -> None:
        self._loop, self._down, self._free = asyncio.get_running_loop(), asyncio.Event(), asyncio.LifoQueue()
        for _ in range(self._size):
            self._free.put_nowait(await self._connect())
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = listening.sockets[0].getsockname()[1]
        self._up.set()
        await self._down.wait()
        listening.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        while not self._free.empty():
            self._free.get_nowait().writer.transport.abort()
        await asyncio.sleep(0.05)  # what was aborted is closed in the next turns of the loop

    async def _connect(self) -> _Server:
        socket = f"{self._url.query['host']}/.s.PGSQL.{self._url.port or 5432}"
        server = _Server(*await asyncio.open_unix_connection(socket))
        names = f"user\0{self._url.username}\0database\0{self._url.database}\0\0".encode()
        server.writer.write(struct.pack("!ii", len(names) + 8, _PROTOCOL_3) + names)
        while (message := await _read(server.reader))[0] != b"Z":
            if message[0] == b"S":
                server.parameters.append(message[1])
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self._welcome(reader, writer):
                await self._transact(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of them hung up, or the pooler ends
        finally:
            writer.transport.abort()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            names = (await reader.readexactly(length - 8)).split(b"\0")
            if code not in (_SSL, _GSS):
                break
            writer.write(b"N")
        if code == _CANCEL:
            return False
        if b"options" in names[::2]:
            _write(writer, b"E", _REFUSED)
            await writer.drain()
            return False
        server = await self._free.get()
        self._free.put_nowait(server)
        _write(writer, b"R", struct.pack("!i", 0))
        for parameter in server.parameters:
            _write(writer, b"S", parameter)
        _write(writer, b"K", _MADE_UP)
        _write(writer, b"Z", b"I")
        return True

    async def _transact(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry the messages of a client; take a connection to the server for each transaction."""
        server: _Server | None = None
        try:
            while (message := await _read(reader))[0] != b"X":
                server = server or await self._free.get()
                _write(server.writer, *message)
                if message[0] in b"QS" and await self._answer(server, writer) == b"I":
                    self._free.put_nowait(server)
                    server = None
        finally:
            if server is not None:  # its client has left amid a transaction
                server.writer.transport.abort()
                with suppress(asyncio.CancelledError, OSError):
                    self._free.put_nowait(await self._connect())

    async def _answer(self, server: _Server, writer: asyncio.StreamWriter) -> bytes:
        """Carry the server's answer to its client; return the state of the transaction after it."""
        while True:
            kind, payload = await _read(server.reader)
            _write(writer, kind, payload)
            if kind == b"Z":
                await writer.drain()
                return payload


async def _read(reader: asyncio.StreamReader) -> _Message:
    kind, length = struct.unpack("!ci", await reader.readexactly(5))
    return kind, await reader.readexactly(length - 4)


def _write(writer: asyncio.StreamWriter, kind: bytes, payload: bytes) -> None:
    writer.write(kind + struct.pack("!i", len(payload) + 4) + payload)
