"""Send the lines of a batch file to a server with aiohttp alone: the loop that a user would write instead of a batch.

    python -m bench.bare_loop URL FILE CONCURRENCY

CONCURRENCY tasks each take a line, send its body, read and parse the answer once, and write it with its `custom_id` as
a line to FILE.results. The event loop is uvloop, as in a worker. The last line of the output is JSON: seconds, and
seconds of CPU (user and system), both without the imports.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import BinaryIO

import aiohttp
import msgspec
import uvloop

#: Sends lines until none is left: session, URL, lines, where results go.
SendLines = Callable[[aiohttp.ClientSession, str, Iterator[bytes], BinaryIO], Coroutine[None, None, None]]


class _Line(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw


def main(url: str, path: Path, concurrency: int, send_lines: SendLines) -> None:
    began, used = time.monotonic(), time.process_time()
    with path.open("rb") as handle, path.with_suffix(".results").open("wb") as results:
        uvloop.run(_send_all(url, handle, results, concurrency, send_lines))
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - used}))


async def _send_all(
    url: str, lines: Iterator[bytes], results: BinaryIO, concurrency: int, send_lines: SendLines
) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(send_lines(session, url, lines, results))


async def _send_plain(session: aiohttp.ClientSession, url: str, lines: Iterator[bytes], results: BinaryIO) -> None:
    for text in lines:
        line = json.loads(text)
        async with session.post(url + line["url"], json=line["body"]) as response:
            answer = await response.json()
        assert response.status == 200, answer
        result = {"custom_id": line["custom_id"], "status": response.status, "body": answer}
        results.write(json.dumps(result).encode() + b"\n")


async def _send_lean(session: aiohttp.ClientSession, url: str, lines: Iterator[bytes], results: BinaryIO) -> None:
    headers = {"Content-Type": "application/json"}
    for line in map(msgspec.json.Decoder(_Line).decode, lines):
        async with session.post(url + line.url, data=bytes(line.body), headers=headers) as response:
            answer = msgspec.json.decode(await response.read())
        assert response.status == 200, answer
        result = {"custom_id": line.custom_id, "status": response.status, "body": answer}
        results.write(msgspec.json.encode(result) + b"\n")


LOOPS: dict[str, SendLines] = {"plain": _send_plain, "lean": _send_lean}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), LOOPS[sys.argv[4]])
