"""The parent's side of a confined child: start it, exchange messages with it, kill it.

A child belongs to the thread that starts it: the kernel ends the child with that thread.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from jobs.logs import Seldom
from workers.sandbox.channel import HEADER, MAX_BYTES, decode_ready
from workers.sandbox.confinement import Policy

START_SECONDS: Final = 60.0  # for Python and the libraries, on a machine that has much else to do
_DYING_SECONDS: Final = 5.0  # between closing its pipes and being dead, with a gigabyte to give back
_READ: Final = 1 << 20
#: Variables that the child inherits. No keys, no addresses.
INHERITED_VARIABLES: Final = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME")
FIXED: Final = {
    "PYTHONUTF8": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads and arenas reserve address space by the dozens of MiB, which would count as the input's.
    "MALLOC_ARENA_MAX": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKIO_WORKER_THREADS": "1",
    "OMP_THREAD_LIMIT": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

_incomplete = Seldom(logging.getLogger(__name__), "sandbox_incomplete", seconds=86_400.0)


class Died(Exception):
    """The child ended without an answer."""


class TooLarge(Died):
    """The child announced an answer that is larger than any may be."""


class TimeUp(Exception):
    """The child did not answer in time."""


class Child:
    """A process, the socket that it reads and the pipe that it answers by. Other threads may call only `kill`."""

    def __init__(self, policy: Policy, variables: Sequence[str] = ()) -> None:
        """Start the child; it inherits `variables` besides the usual ones."""
        self._policy = policy
        self._lock = threading.Lock()
        self._messages, theirs = socket.socketpair()
        self._messages.shutdown(socket.SHUT_RD)  # the child must not fill it
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-P", "-m", "workers.sandbox", msgspec.json.encode(policy).decode(), str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(variables),
                start_new_session=True,
                bufsize=0,
            )
        self._death = os.pidfd_open(self._process.pid)

    def begin(self) -> tuple[str, ...]:
        """Wait until the child has started; log and return the parts its confinement lacks. Raises: Died, TimeUp."""
        message = self.receive(START_SECONDS, MAX_BYTES)
        try:
            missing = decode_ready(message).missing
        except msgspec.MsgspecError as error:
            raise Died from error
        if missing:
            _incomplete.warn(child=self._policy.module, missing=list(missing))
        return missing

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and copies of open descriptors with it. Raises: Died."""
        try:
            socket.send_fds(self._messages, [HEADER.pack(len(message))], descriptors)
            self._messages.sendall(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Died from error

    def has_answer(self, seconds: float) -> bool:
        """Wait for at most `seconds`; return whether `receive` would return or raise at once."""
        return bool(self._poll().poll(seconds * 1000))

    def receive(self, seconds: float, largest: int) -> bytes:
        """Return the next answer, of at most `largest` bytes. Raises: Died, TooLarge, TimeUp."""
        deadline = time.monotonic() + seconds
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline))
        if length > largest:
            raise TooLarge
        return self._read(length, deadline)

    def kill(self) -> None:
        """Kill the process and its session. The lock keeps its number from being another process's by now."""
        with self._lock:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> int:
        """Kill the process if it lives; return its return code: minus the signal if it had died of one before."""
        if self._has_hung_up():
            self._await_death()
        self.kill()
        with self._lock:
            self._process.wait()
        os.close(self._death)
        self._messages.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._process.returncode

    def _has_hung_up(self) -> bool:
        """Return whether its end of the pipe is closed: the child is dying, of something that we want to know."""
        poll = select.poll()
        poll.register(self._process.stdout or 0, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def _await_death(self) -> None:
        """Wait without reaping: its number stays its own, so that `kill` still reaches its session."""
        poll = select.poll()
        poll.register(self._death, select.POLLIN)
        poll.poll(_DYING_SECONDS * 1000)

    def _poll(self) -> select.poll:
        """Return a poll for what the child writes, and for its death."""
        assert self._process.stdout is not None
        poll = select.poll()
        for number in (self._process.stdout.fileno(), self._death):
            poll.register(number, select.POLLIN)
        return poll

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        pipe, poll, got = self._process.stdout.fileno(), self._poll(), bytearray()
        while len(got) < size:
            ready = [number for number, _ in poll.poll(max(0, deadline - time.monotonic()) * 1000)]
            if not ready:
                raise TimeUp
            some = os.read(pipe, min(size - len(got), _READ)) if pipe in ready else b""
            if not some:
                raise Died
            got += some
        return bytes(got)


def environment(variables: Sequence[str] = ()) -> dict[str, str]:
    """Return the child's variables: where our code is, and nothing that is worth stealing."""
    inherited = {name: os.environ[name] for name in (*INHERITED_VARIABLES, *variables) if name in os.environ}
    return inherited | FIXED | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
