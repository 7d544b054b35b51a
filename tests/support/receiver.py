"""A real webhook receiver that behaves as badly as it is asked to, and remembers everything.

    with Receiver() as receiver:
        receiver.url("ok")    # or 500, 410, hang, trickle, reset, redirect, throttle, huge, bomb, sly, slow, nonsense

The first part of the path says what it does; what follows tells receivers of one kind apart. It also is the canary:
`connections` counts every connection that anything made to it.
"""

import asyncio
import gzip
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from standardwebhooks import Webhook

METADATA_SERVICE = "http://169.254.169.254/latest/meta-data/"


@dataclass(frozen=True, slots=True)
class Received:
    """Hold a whole request."""

    at: float
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    def verify(self, secret: str) -> dict[str, object]:
        """Return the body if the signature is right. Raises WebhookVerificationError."""
        return Webhook(secret).verify(self.body, self.headers)  # type: ignore[no-any-return]


@dataclass(slots=True)
class Receiver:
    """An HTTP server on a thread of its own. `requests` grows while it runs."""

    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None
    _up: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Receiver":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(30)

    def url(self, path: str = "ok", host: str | None = None) -> str:
        return f"{'https' if self.tls else 'http'}://{host or self.host}:{self.port}/{path}"

    def of(self, path: str) -> list[Received]:
        """Return the requests of one path, in the order of their arrival."""
        return [request for request in self.requests if urlsplit(request.path).path == f"/{path}"]

    _down: asyncio.Event = field(init=False)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._down = asyncio.Event()
        server = await asyncio.start_server(self._connected, self.host, self.port, ssl=self.tls, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._down.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await self._request(reader):
                self.requests.append(request)
                behave = _BEHAVIOURS.get(request.path.split("/")[1].split("?")[0], _answer_ok)
                if not await behave(request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the sender hung up, as it may, or the test is over
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Received | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Received(time.time(), first.split(" ")[1], headers, body)


Behaviour = Callable[[Received, asyncio.StreamWriter], Awaitable[bool]]


async def _reply(writer: asyncio.StreamWriter, status: str, headers: str = "", body: bytes = b"") -> bool:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return True


def _status(status: str) -> Behaviour:
    async def behave(_request: Received, writer: asyncio.StreamWriter) -> bool:
        return await _reply(writer, status)

    return behave


_answer_ok = _status("200 OK")


async def _hang(_request: Received, _writer: asyncio.StreamWriter) -> bool:
    await asyncio.sleep(60)
    return False


async def _trickle(_request: Received, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 600\r\n\r\n")
    for _ in range(600):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(1)
    return False


async def _reset(_request: Received, writer: asyncio.StreamWriter) -> bool:
    writer.transport.abort()
    return False


async def _redirect(request: Received, writer: asyncio.StreamWriter) -> bool:
    query = parse_qs(urlsplit(request.path).query)
    to, status = query.get("to", [METADATA_SERVICE])[0], query.get("status", ["301"])[0]
    return await _reply(writer, f"{status} Moved", f"location: {to}\r\n")


async def _throttle(request: Received, writer: asyncio.StreamWriter) -> bool:
    after = parse_qs(urlsplit(request.path).query).get("after", ["7"])[0]
    return await _reply(writer, "429 Too Many Requests", f"retry-after: {after}\r\n")


async def _huge(_request: Received, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n")
    for _ in range(1000):
        writer.write(b"x" * 10_000)
        await writer.drain()
    return True


async def _bomb(_request: Received, writer: asyncio.StreamWriter) -> bool:
    return await _reply(writer, "200 OK", "content-encoding: gzip\r\n", _BOMB)


async def _sly(_request: Received, writer: asyncio.StreamWriter) -> bool:
    """Close the connection after the answer without a notice, as simple servers do."""
    await _reply(writer, "200 OK")
    return False


async def _nonsense(_request: Received, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"\x00\x01 this is not HTTP\r\n\r\n")
    await writer.drain()
    return False


async def _slow(_request: Received, writer: asyncio.StreamWriter) -> bool:
    await asyncio.sleep(0.1)
    return await _reply(writer, "200 OK")


_BOMB = gzip.compress(b"\0" * 50_000_000)
_BEHAVIOURS: dict[str, Behaviour] = {
    "500": _status("500 Internal Server Error"),
    "410": _status("410 Gone"),
    "422": _status("422 Unprocessable Content"),
    "hang": _hang,
    "trickle": _trickle,
    "reset": _reset,
    "redirect": _redirect,
    "throttle": _throttle,
    "huge": _huge,
    "bomb": _bomb,
    "sly": _sly,
    "slow": _slow,
    "nonsense": _nonsense,
}


def certificate(folder: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's context for `host`, self-signed, and a client's that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "receiver.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))
