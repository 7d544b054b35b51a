"""Send the lines of a batch file to a server with nothing but aiohttp: the loop that a user would write instead.

    python -m bench.bare_loop URL FILE CONCURRENCY

As many tasks as CONCURRENCY take line by line, send its body, read the answer, parse it once, and write it with its
`custom_id` as a line to FILE.results. The loop is uvloop, as in a worker. The last line of the output is JSON: seconds,
and seconds of CPU (user and system), without the imports.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import aiohttp
import msgspec
import uvloop


class _Line(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw


def main(url: str, path: Path, concurrency: int) -> None:
    began, used = time.monotonic(), time.process_time()
    with path.open("rb") as handle, path.with_suffix(".results").open("wb") as results:
        uvloop.run(_send_all(url, map(msgspec.json.Decoder(_Line).decode, handle), results, concurrency))
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - used}))


async def _send_all(url: str, lines: Iterator[_Line], results: BinaryIO, concurrency: int) -> None:
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_send_lines(session, url, lines, results))


async def _send_lines(session: aiohttp.ClientSession, url: str, lines: Iterator[_Line], results: BinaryIO) -> None:
    for line in lines:
        async with session.post(url + line.url, data=bytes(line.body)) as response:
            answer = msgspec.json.decode(await response.read())
        assert response.status == 200, answer
        result = {"custom_id": line.custom_id, "status": response.status, "body": answer}
        results.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
