"""The parent's side: one child process that reads files, replaced as soon as anything is wrong with it.

    parse ──▶ start, if none runs ──▶ Ask ──▶ wait ──▶ Parsed      the child stays, for up to FILES files
                                               ├──▶ Refusal        it goes: a library that failed may be damaged
                                               ├──▶ it died, or time is up: killed, Refused
                                               └──▶ interrupt() from another thread: killed, Interrupted

A child belongs to the thread that parses: the kernel ends it with that thread. What the child starts itself shares its
session and is killed with it.
"""

import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from jobs.documents import Document
from jobs.logs import Seldom
from jobs.settings import Settings
from workers.parsing import wire
from workers.parsing.terms import Code, Cutting, Interrupted, Limits, Refused, Strategy, invalid

__all__ = ["Code", "Cutting", "Interrupted", "Limits", "Parser", "Refused", "Strategy", "limits_of"]

FILES: Final = 200  # then a child is replaced: libraries leak
STARTS: Final = 3  # a child that ends as it starts knows nothing of the file: others get a chance
START_SECONDS: Final = 60.0  # for Python and the libraries, on a machine that has much else to do
_DYING_SECONDS: Final = 5.0  # between closing its pipes and being dead, with a gigabyte to give back
_READ: Final = 1 << 20
#: What of our environment the child may see. No keys, no addresses.
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "TESSDATA_PREFIX")
_SET: Final = {
    "PYTHONUTF8": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads and arenas reserve address space by the dozens of MiB, which would count as the file's.
    "MALLOC_ARENA_MAX": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKIO_WORKER_THREADS": "1",
    "OMP_THREAD_LIMIT": "1",
}

#: A container, or the kernel, forbids namespaces: what a document breaks into could then call whom we can.
_has_network = Seldom(logging.getLogger(__name__), "child_has_network", seconds=86_400.0)


class Died(Exception):
    """The child ended without an answer."""


class TimeUp(Exception):
    """The child did not answer in time."""


class Child:
    """A process and its two pipes. Only `kill` may be called from another thread."""

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-P", "-m", module, str(os.getpid())]
        self._module = module
        self._lock = threading.Lock()
        self._process = subprocess.Popen(  # noqa: S603 (our own module)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
            bufsize=0,
        )
        self._death = os.pidfd_open(self._process.pid)
        self.files = 0

    def begin(self) -> None:
        """Wait until it has started. Raises Died or TimeUp."""
        message = self.hear(START_SECONDS, wire.LARGEST_ASK)
        try:
            ready = wire.decode_answer(message)
        except msgspec.MsgspecError as error:
            raise Died from error
        if not (isinstance(ready, wire.Ready) and ready.alone):
            _has_network.warn(child=self._module)

    def say(self, message: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(wire.HEADER.pack(len(message)) + message)
        except BrokenPipeError as error:
            raise Died from error

    def hear(self, seconds: float, largest: int) -> bytes:
        """Raises Died or TimeUp."""
        deadline = time.monotonic() + seconds
        (length,) = wire.HEADER.unpack(self._read(wire.HEADER.size, deadline))
        if length > largest:
            raise wire.nonsense()
        return self._read(length, deadline)

    def kill(self) -> None:
        """With all that it started. The lock keeps its number from being another process's by now."""
        with self._lock:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> int:
        """Its return code: minus the signal if it had died of one before."""
        if self._hung_up():
            self._await_death()
        self.kill()
        with self._lock:
            self._process.wait()
        os.close(self._death)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return self._process.returncode

    def _hung_up(self) -> bool:
        """Its end of the pipe is closed: it is dying, of something that we want to know."""
        poll = select.poll()
        poll.register(self._process.stdout or 0, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def _await_death(self) -> None:
        """It stays a zombie, so that what it started can still be killed."""
        poll = select.poll()
        poll.register(self._death, select.POLLIN)
        poll.poll(_DYING_SECONDS * 1000)

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        pipe, got = self._process.stdout.fileno(), bytearray()
        poll = select.poll()
        for number in (pipe, self._death):  # something that it started may hold its pipe when it is dead
            poll.register(number, select.POLLIN)
        while len(got) < size:
            ready = [number for number, _ in poll.poll(max(0, deadline - time.monotonic()) * 1000)]
            if not ready:
                raise TimeUp
            some = os.read(pipe, min(size - len(got), _READ)) if pipe in ready else b""
            if not some:
                raise Died
            got += some
        return bytes(got)


class Parser:
    """For one thread; `interrupt` is for the others. `module` is what the child runs."""

    def __init__(self, limits: Limits, module: str = "workers.parsing.child") -> None:
        self._limits = limits
        self._module = module
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._busy = False
        self._interrupted = False

    def parse(self, source: Path, filename: str, cutting: Cutting) -> Document:
        """Raises Refused or Interrupted."""
        with self._lock:
            self._busy, self._interrupted = True, False
        try:
            return self._parse(wire.encode(wire.ask(str(source), filename, cutting, self._limits)))
        finally:
            with self._lock:
                self._busy = False

    def interrupt(self) -> None:
        """Kill what runs now. When nothing does, nothing happens."""
        with self._lock:
            self._interrupted = self._busy
            child = self._child if self._busy else None
        if child is not None:
            child.kill()

    def close(self) -> None:
        self._drop()

    def _parse(self, ask: bytes, *, again: bool = True) -> Document:
        """A child that was killed once says nothing against its file: who ends a worker may begin with its children."""
        try:
            child = self._started()
            child.say(ask)
            message = child.hear(self._limits.seconds, wire.largest_answer(self._limits))
            return self._taken(child, message)
        except TimeUp:
            self._end()
            raise invalid(_beyond(f"{self._limits.seconds:g} seconds")) from None
        except Died:
            returncode = self._end()
            if returncode != -signal.SIGKILL or not again:
                raise self._obituary(returncode) from None
        except BaseException:  # whatever it is, this child has something to do with it
            self._end()
            raise
        return self._parse(ask, again=False)

    def _taken(self, child: Child, message: bytes) -> Document:
        try:
            answer = wire.decode_answer(message)
        except msgspec.MsgspecError:
            raise wire.nonsense() from None
        if isinstance(answer, wire.Refusal):
            raise Refused(answer.code, answer.message)
        if not isinstance(answer, wire.Parsed):
            raise wire.nonsense()
        document = wire.check(answer.document, self._limits)
        child.files += 1
        if child.files >= FILES or answer.grown > self._limits.memory_bytes:
            self._drop()
        return document

    def _started(self) -> Child:
        if self._child is not None:
            return self._child
        for _ in range(STARTS):
            child = Child(self._module)
            with self._lock:
                self._child = child
                too_late = self._interrupted
            if too_late:
                raise Interrupted
            try:
                child.begin()
            except (Died, TimeUp):
                self._end()
            else:
                return child
        raise Refused("server_error", "The parser could not be started.")

    def _end(self) -> int:
        """Drop the child; Interrupted if that is why it ended."""
        returncode = self._drop()
        if self._interrupted:
            raise Interrupted from None
        return returncode

    def _drop(self) -> int:
        with self._lock:
            child, self._child = self._child, None
        return 0 if child is None else child.end()

    def _obituary(self, returncode: int) -> Refused:
        memory = f"{self._limits.memory_bytes >> 20} MiB of memory"
        cpu = f"{self._limits.cpu_seconds} seconds of CPU time"
        if returncode == -signal.SIGXCPU:
            return invalid(_beyond(cpu))
        if returncode in (-signal.SIGABRT, -signal.SIGKILL):  # Rust and the kernel, when there is no memory
            return invalid(_beyond(memory))
        return invalid(_beyond(f"{memory} and {cpu}"))


def limits_of(config: Settings) -> Limits:
    """The child has one thread, so its CPU time is what ends first only where its library starts more."""
    return Limits(
        config.parse_seconds,
        cpu_seconds=math.ceil(config.parse_seconds),
        memory_bytes=config.parse_memory_bytes,
        pages=config.parse_max_pages,
        text_bytes=config.parse_text_bytes,
        tokens=config.parse_max_tokens,
    )


def environment() -> dict[str, str]:
    """What the child sees: where our code is, and nothing that is worth stealing."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | _SET | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _beyond(limit: str) -> str:
    return f"The file could not be parsed within its limits of {limit}."
