"""Receive a multipart form whose file streams into storage while it is hashed, without holding it in memory.

    request ─▶ parser ─▶ text fields: memory, 64 KB at most
                     └─▶ the one file part ─▶ `Sink` ─▶ storage's writer (durable and visible at its end)

The file may come before or after the fields, so the fields are checked when everything has arrived.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from api.shares import run_in_threadpool
from jobs.errors import InvalidRequest, PayloadTooLarge
from jobs.platform.storage import Storage

_MAX_FIELDS = 20
_MAX_BOUNDARY = 70  # RFC 2046
_MAX_FIELD_BYTES = 65_536
_CHUNK = 1 << 20  # bytes of one write: a hop to a thread costs more than a small write
#: The size of one part of an upload, as at OpenAI.
MAX_PART_BYTES = 64 << 20

BYTES: dict[str, Any] = {"type": "string", "format": "binary"}


def describe_form(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a form; `properties` are JSON schemas by field."""
    schema = {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@dataclass(slots=True)
class Received:
    """The text fields of a form, and the name, size and hash of its file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    bytes: int = 0
    sha256: str = ""


class Sink:
    """The destination of the file part `name`: hash it, and write it unless `path` is None.

    Bytes are processed in a thread.
    """

    def __init__(self, name: str, storage: Storage, path: str | None, max_bytes: int) -> None:
        self.name = name
        self._writer = storage.writer(path) if path else None
        self._max_bytes = max_bytes
        self._handle: Any = None
        self._hash = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.bytes = 0

    def open(self) -> None:
        if self._writer is not None:
            self._handle = self._writer.__enter__()

    async def add(self, data: bytes) -> None:
        self.bytes += len(data)
        if self.bytes > self._max_bytes:
            raise PayloadTooLarge(f"'{self.name}' has more than {self._max_bytes} bytes.", param=self.name)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _CHUNK:
            await run_in_threadpool(self._write)

    def close(self, error: BaseException | None = None) -> None:
        """Make the object visible, or with `error` remove it; the storage may raise an error of its own."""
        if error is None:
            self._write()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def _write(self) -> None:
        data = b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        self._hash.update(data)
        if self._handle is not None:
            self._handle.write(data)


@asynccontextmanager
async def _open_sink(sink: Sink) -> AsyncIterator[Sink]:
    await run_in_threadpool(sink.open)
    try:
        yield sink
    except BaseException as error:  # the upload failed or was cancelled: remove it
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(sink.close, error)
        raise
    await run_in_threadpool(sink.close)


async def receive(request: Request, sink: Sink, heartbeat: Callable[[], Awaitable[None]]) -> Received:
    """Read the whole form, and pass the file part to `sink`. `heartbeat` is called while bytes arrive."""
    form = _Form(_boundary(request), sink.name)
    async with _open_sink(sink):
        try:
            async for chunk in request.stream():
                form.feed(chunk)
                for data in form.drain():
                    await sink.add(data)
                await heartbeat()
        except (FormParserError, ClientDisconnect) as error:
            raise _invalid_form("it is cut short or not well formed") from error
        form.finish()
    received = form.received
    received.bytes, received.sha256 = sink.bytes, sink.digest()
    return received


class _Form:
    """The callbacks of the parser: the part that is being read, and what was read."""

    def __init__(self, boundary: bytes, name: str) -> None:
        self.received = Received()
        self._name = name
        self._file: list[bytes] = []
        self._has_file = False
        self._header: tuple[bytes, bytes] = (b"", b"")
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None  # None: the bytes belong to the file
        self._text = b""
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def drain(self) -> list[bytes]:
        """Return the file's bytes that have arrived since the last call."""
        data, self._file = self._file, []
        return data

    def finish(self) -> None:
        if not self._complete:
            raise _invalid_form("it is cut short")
        if not self._has_file:
            message = f"Missing required parameter: '{self._name}'."
            raise InvalidRequest(message, param=self._name, code="missing_required_parameter")

    def _begin(self) -> None:
        self._headers, self._header, self._text = {}, (b"", b""), b""

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _on_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = (b"", b"")

    def _on_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise _invalid_form("a part has no name")
        name = _text(options[b"name"])
        if name == self._name:
            self._start_file(options.get(b"filename"))
        elif b"filename" in options or name in self.received.fields or len(self.received.fields) >= _MAX_FIELDS:
            raise InvalidRequest(f"Unknown parameter: '{name[:64]}'.", param=name[:64], code="unknown_parameter")
        else:
            self._field = name
            self.received.fields[name] = ""

    def _start_file(self, filename: bytes | None) -> None:
        if self._has_file:
            raise InvalidRequest(f"'{self._name}' was sent twice.", param=self._name, code="duplicate_parameter")
        if filename is None:
            message = f"Invalid type for '{self._name}': expected a file, but got a string instead."
            raise InvalidRequest(message, param=self._name, code="invalid_type")
        self._has_file, self._field = True, None
        self.received.filename = _text(filename)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._file.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"'{self._field}' is too long.", param=self._field, code="string_above_max_length")

    def _end(self) -> None:
        if self._field is not None:
            self.received.fields[self._field] = _text(self._text)

    def _on_end(self) -> None:
        self._complete = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise _invalid_form("its Content-Type names no boundary of at most 70 characters")
    return boundary


def _text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _invalid_form("a field is not UTF-8") from error
    if "\0" in text:
        raise _invalid_form("a field has a NUL character in it")
    return text


def _invalid_form(why: str) -> InvalidRequest:
    return InvalidRequest(f"We could not read the form of your request: {why}.", code="invalid_form")
