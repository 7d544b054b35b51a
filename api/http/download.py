"""Stream the bytes of a file: the whole file, or the one range that the Range header asks for.

Of a client that reads slowly the server holds two chunks: one that is being sent, and the next one. A project has as
many downloads at once as streams, so that all of them take some MiB.
"""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import anyio
from fastapi.responses import Response, StreamingResponse

from api.http.multipart import BYTES
from api.shares import open_stream, run_in_threadpool
from jobs.platform.storage import Storage

_CHUNK = 128 << 10  # bytes that are read at once: each time costs a hop to a thread, and memory while a client is slow
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_BYTES = {"application/octet-stream": {"schema": BYTES}}
#: The answers of a route that sends a file, for its description.
BYTES_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes", "content": _BYTES},
    206: {"description": "A range of the bytes", "content": _BYTES},
    416: {"description": "Range Not Satisfiable"},
}
#: The result of `_span` for a range without a byte of the file: the answer is 416.
_NONE = (-1, -1)


class Download(NamedTuple):
    """A file of the storage, and the name that a client stores it under."""

    path: str
    bytes: int
    filename: str


async def send_file(storage: Storage, file: Download, range_header: str | None) -> Response:
    """Return the response with a file's bytes. `range_header` is the value of the Range header.

    A header that is malformed or names several ranges is ignored, as HTTP allows: the answer is the whole file.

    Raises: ProjectBusy, if the project has too many streams and downloads.
    """
    span = _span(range_header, file.bytes)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    if span == _NONE:
        return Response(
            status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers={"Content-Range": f"bytes */{file.bytes}"}
        )
    start, end = span or (0, file.bytes)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    headers["Content-Length"] = str(end - start)
    status = HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK
    open_stream()
    reader = storage.reader(file.path, start)
    handle = await run_in_threadpool(reader.__enter__)  # before the response begins: missing bytes are an error
    return StreamingResponse(
        _chunks(reader, handle, end - start), status, headers, media_type="application/octet-stream"
    )


async def _chunks(reader: AbstractContextManager[BinaryIO], handle: BinaryIO, length: int) -> AsyncIterator[bytes]:
    try:
        while length and (data := await run_in_threadpool(handle.read, min(_CHUNK, length))):
            length -= len(data)
            yield data
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(reader.__exit__, None, None, None)


def _span(range_header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the byte behind the last one of a single range; None for the whole file."""
    match = _RANGE.fullmatch(range_header.strip()) if range_header else None
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2] or size) + 1, size)
        if match[2] and int(match[2]) < start:
            return None
    return (start, end) if start < end else _NONE
