"""Hands on what a worker says, and keeps the last of it: `words_child.py RING FROM TO [FROM TO]`, all descriptors.

A process of its own, so that what a worker says as it dies is handed on too. It ends when nobody can say anything more.
"""

import os
import selectors
import signal
import sys
from contextlib import suppress

HEAD = 8  # bytes of the ring's beginning: how many were written in all
KEPT = 16_384


def main(ring: int, pairs: dict[int, int]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker goes first
    total = 0
    with selectors.DefaultSelector() as ready:
        for source in pairs:
            ready.register(source, selectors.EVENT_READ)
        while ready.get_map():
            for key, _ in ready.select():
                data = os.read(key.fd, 1 << 16)
                if not data:
                    ready.unregister(key.fd)
                    continue
                with suppress(OSError):  # nobody listens any more; it is kept all the same
                    _write(pairs[key.fd], data)
                total = _keep(ring, data, total)


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


def _keep(ring: int, data: bytes, total: int) -> int:
    """The data first, then how much there is: whoever reads meanwhile misses the newest, no more."""
    total += len(data)
    data = data[-KEPT:]
    at = (total - len(data)) % KEPT
    os.pwrite(ring, data[: KEPT - at], HEAD + at)
    os.pwrite(ring, data[KEPT - at :], HEAD)
    os.pwrite(ring, total.to_bytes(HEAD, "little"), 0)
    return total


if __name__ == "__main__":
    numbers = list(map(int, sys.argv[1:]))
    main(numbers[0], dict(zip(numbers[1::2], numbers[2::2], strict=True)))
