"""Keep the last lines of the log of this process and its children, to show why an engine died.

a file (`nightmill up`)                its end
a pipe or a socket (containers, systemd)    passes through a child that forwards it and keeps the last 16 KB
a terminal                             nothing: an operator is watching

The child is this file, run as `log_tail.py RING FROM TO [FROM TO]` (all are descriptors), so it imports the standard
library only. As a process of its own it also forwards what a worker writes while dying. It ends when no process can
write to it any more.
"""

import fcntl
import os
import selectors
import signal
import stat
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from typing import Final

LINES: Final = 8
_MAX_LINE: Final = 600  # characters of a line: its beginning, and more of its end, where an exception says what it is
_BEGINNING: Final = 150
HEAD: Final = 8  # bytes at the ring's beginning: the number of bytes written in all
KEPT: Final = 16_384
_FLUSH_SECONDS: Final = 1.0
_LOOK: Final = 0.02


class LogTail:
    """The tail of standard output and standard error, as they are at the construction."""

    def __init__(self) -> None:
        self._ring: int | None = None
        self.before = self.last()  # of the process before this one, where the log is a file
        pairs = [(number, os.dup(number)) for number in (1, 2) if _is_stream(number)]
        if pairs:
            self._listen(pairs)

    def last(self) -> list[str]:
        """Return the last lines, shortened."""
        data = _ring(self._ring) if self._ring is not None else _file(2)
        return [_short(line) for line in data.decode(errors="replace").splitlines() if line.strip()][-LINES:]

    def flush(self) -> None:
        """Wait a moment until the child has read all that was written."""
        pause = threading.Event()
        for _ in range(int(_FLUSH_SECONDS / _LOOK)):
            if self._ring is None:
                return
            read = not any(_unread(number) for number in (1, 2))
            pause.wait(_LOOK)  # once more: the bytes were read, and are being written
            if read:
                return

    def _listen(self, pairs: list[tuple[int, int]]) -> None:
        self._ring = os.memfd_create("log_tail")
        arguments, given = [self._ring], []
        for number, target in pairs:
            reading, writing = os.pipe()
            os.dup2(writing, number)
            os.close(writing)
            arguments += [reading, target]
            given += [reading, target]
        command = [sys.executable, "-I", "-S", __file__, *map(str, arguments)]
        quiet = subprocess.DEVNULL  # with this process's streams it would never see the end of its input
        self._child = subprocess.Popen(  # noqa: S603 (our own interpreter and file)
            command, pass_fds=arguments, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        for descriptor in given:
            os.close(descriptor)


def _is_stream(number: int) -> bool:
    mode = os.fstat(number).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _unread(number: int) -> bool:
    """Return whether the pipe has bytes that were not read."""
    if not stat.S_ISFIFO(os.fstat(number).st_mode):
        return False
    count = fcntl.ioctl(number, termios.FIONREAD, bytes(4))
    return any(count)


def _ring(ring: int) -> bytes:
    total = int.from_bytes(os.pread(ring, HEAD, 0), "little")
    data = os.pread(ring, KEPT, HEAD)
    at = total % KEPT
    return data[:total] if total <= KEPT else data[at:] + data[:at]


def _file(number: int) -> bytes:
    """Return the file that the log is written to; None where it is not a file."""
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        return b""
    with open(f"/proc/self/fd/{number}", "rb") as log:  # noqa: PTH123 (a descriptor, not a path)
        log.seek(max(0, status.st_size - KEPT))
        return log.read()


def _short(line: str) -> str:
    if len(line) <= _MAX_LINE:
        return line
    return f"{line[:_BEGINNING]} … {line[_BEGINNING - _MAX_LINE :]}"


def main(ring: int, pairs: dict[int, int]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # so that the worker ends first
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
                with suppress(OSError):  # no reader any more; the ring keeps it all the same
                    _write(pairs[key.fd], data)
                total = _keep(ring, data, total)


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


def _keep(ring: int, data: bytes, total: int) -> int:
    """Write the data before the count, so that a reader meanwhile misses only the newest bytes."""
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
