"""The last lines that this process and its children have written to their log, for whoever asks why an engine died.

a file (`nightmill up`)                its end
a pipe or a socket (containers, systemd)    goes through a child that hands it on and keeps the last 16 KB
a terminal                             nothing: somebody looks at it

The child is this file, run as `log_tail.py RING FROM TO [FROM TO]` (all are descriptors), so it imports the standard
library only. It is a process of its own, so that what a worker writes as it dies is handed on too. It ends when no
process can write to it any more.
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
_LONGEST: Final = 600  # characters of a line: its beginning, and more of its end, where an exception says what it is
_BEGINNING: Final = 150
HEAD: Final = 8  # bytes of the ring's beginning: how many were written in all
KEPT: Final = 16_384
_FLUSH_SECONDS: Final = 1.0
_LOOK: Final = 0.02


class LogTail:
    """Of standard output and standard error, as they are when it is made."""

    def __init__(self) -> None:
        self._ring: int | None = None
        self.before = self.last()  # of the process before us, where the log is a file
        pairs = [(number, os.dup(number)) for number in (1, 2) if _is_stream(number)]
        if pairs:
            self._listen(pairs)

    def last(self) -> list[str]:
        """The last lines, shortened."""
        data = _ring(self._ring) if self._ring is not None else _file(2)
        return [_short(line) for line in data.decode(errors="replace").splitlines() if line.strip()][-LINES:]

    def flush(self) -> None:
        """Wait a moment until what was said has been handed on, and kept."""
        pause = threading.Event()
        for _ in range(int(_FLUSH_SECONDS / _LOOK)):
            if self._ring is None:
                return
            read = not any(_unread(number) for number in (1, 2))
            pause.wait(_LOOK)  # once more when it was read: it is on its way
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
        quiet = subprocess.DEVNULL  # with our own streams it would never see the end of what it reads
        self._child = subprocess.Popen(  # noqa: S603 (our own interpreter and file)
            command, pass_fds=arguments, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        for one in given:
            os.close(one)


def _is_stream(number: int) -> bool:
    mode = os.fstat(number).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _unread(number: int) -> bool:
    """Whether something is in the pipe that was not taken out of it."""
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
    """The end of a log that is a file."""
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        return b""
    with open(f"/proc/self/fd/{number}", "rb") as log:  # noqa: PTH123 (a descriptor, not a path)
        log.seek(max(0, status.st_size - KEPT))
        return log.read()


def _short(line: str) -> str:
    if len(line) <= _LONGEST:
        return line
    return f"{line[:_BEGINNING]} … {line[_BEGINNING - _LONGEST :]}"


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
