"""What wakes the supervisor: a child's end, a request to stop, the end of its guard. No handler does any work."""

import os
import select
import signal
import socket
import time
from types import FrameType
from typing import Self

from cli.guard import PASSED_ON

_ONE_REQUEST = 0.5  # seconds; `timeout` and `make` pass on a signal that the terminal has sent too


class Wakeups:
    """Signals as bytes on a socket, so that waiting for them races with nothing. One per process, main thread only.

    `stops` counts requests to stop; `orphaned` becomes true when the guard's end of `guard` is closed.
    """

    def __init__(self, guard: int) -> None:
        self.stops = 0
        self.orphaned = False
        self._stopped = -_ONE_REQUEST
        self._guard = guard
        self._reading, self._writing = socket.socketpair()

    def __enter__(self) -> Self:
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, _noted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return self

    def __exit__(self, *_error: object) -> None:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        self._reading.close()
        self._writing.close()

    def wait(self, seconds: float) -> None:
        """Return when something happened, or after this long."""
        watched = [self._reading.fileno()] if self.orphaned else [self._reading.fileno(), self._guard]
        ready, _, _ = select.select(watched, [], [], max(seconds, 0))
        if self._guard in ready and os.read(self._guard, 1) == b"":
            self.orphaned = True
        if self._reading.fileno() in ready and set(self._reading.recv(4096)) & set(PASSED_ON):
            self._stop_asked()

    def _stop_asked(self) -> None:
        now = time.monotonic()
        if now - self._stopped >= _ONE_REQUEST:
            self.stops += 1
            self._stopped = now


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Python writes the signal's number to the socket; there is nothing else to do."""
