"""Stream the bytes of a file: the whole file, or the one range that the Range header asks for."""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import quote

import anyio
from fastapi.responses import Response, StreamingResponse

from api.shares import run_in_threadpool
from jobs.files.tables import File
from jobs.platform.storage import Storage

_CHUNK = 1 << 20  # bytes that are read at once
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
#: The result of `_span` for a range without a byte of the file: the answer is 416.
_NONE = (-1, -1)


async def send_file(storage: Storage, file: File, range_header: str | None) -> Response:
    """Return the response with a file's bytes. `range_header` is the value of the Range header.

    A header that is malformed or names several ranges is ignored, as HTTP allows: the answer is the whole file.
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
