"""Send the lines of a batch file to a server with nothing but aiohttp: the least that asking over HTTP costs in Python.

    python -m bench.bare_loop URL FILE CONCURRENCY

As many tasks as CONCURRENCY take line by line, send its body, read the answer and parse it once. The loop is uvloop, as
in a worker. The last line of the output is JSON: seconds, and seconds of CPU (user and system), without the imports.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import uvloop


class _Line(msgspec.Struct):
    url: str
    body: msgspec.Raw


def main(url: str, path: Path, concurrency: int) -> None:
    began, used = time.monotonic(), time.process_time()
    with path.open("rb") as handle:
        uvloop.run(_send_all(url, map(msgspec.json.Decoder(_Line).decode, handle), concurrency))
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - used}))


async def _send_all(url: str, lines: Iterator[_Line], concurrency: int) -> None:
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_send_lines(session, url, lines))


async def _send_lines(session: aiohttp.ClientSession, url: str, lines: Iterator[_Line]) -> None:
    for line in lines:
        async with session.post(url + line.url, data=bytes(line.body)) as response:
            answer = msgspec.json.decode(await response.read())
        assert response.status == 200, answer


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
