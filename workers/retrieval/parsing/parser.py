"""Parse files in one child process, which is replaced as soon as anything is wrong with it.

    parse ──▶ start, if none runs ──▶ Ask ──▶ wait ──▶ Parsed      the child stays, for up to FILES files
                                               ├──▶ Refusal        it is ended: a library that failed may be damaged
                                               ├──▶ death, or timeout: killed, Refused
                                               └──▶ interrupt() from another thread: killed, Interrupted

A child belongs to the thread that parses: the kernel ends it with that thread. It is confined (`workers.sandbox`) and
gets the file and the tokenizer as open descriptors.
"""

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from jobs.retrieval.documents import Document
from jobs.settings import Settings
from workers.retrieval.parsing import contract
from workers.retrieval.parsing.contract import (
    Code,
    Cutting,
    FileRefused,
    Interrupted,
    ParserLimits,
    Strategy,
    invalid_file,
)
from workers.sandbox.child import Child, Died, TimeUp, TooLarge
from workers.sandbox.confinement import Policy

__all__ = ["Code", "Cutting", "FileRefused", "Interrupted", "Parser", "ParserLimits", "Strategy", "limits_of"]

FILES: Final = 200  # parsed by one child, because libraries leak
STARTS: Final = 3  # attempts to start a child: one that ends as it starts says nothing about the file
_NO_FILE: Final = "The stored file could not be read."
_NO_TOKENIZER: Final = "The embedding model's tokenizer could not be read."
#: Variables by which the child finds Tesseract's data.
_KEPT: Final = ("PATH", "TESSDATA_PREFIX")
#: Address space of Python and the libraries.
_LIBRARIES_BYTES: Final = 4 << 30


class Parser:
    """Parse files for one thread; other threads may `interrupt`. `policy` is what the child runs and may use."""

    def __init__(self, limits: ParserLimits, policy: Policy | None = None) -> None:
        self._limits = limits
        self._policy = policy or policy_of(limits)
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._files = 0  # that the child has read
        self._busy = False
        self._interrupted = False

    def parse(self, source: Path, filename: str, cutting: Cutting) -> Document:
        """Parse one file in the child. Raises FileRefused or Interrupted."""
        with self._lock:
            self._busy, self._interrupted = True, False
        try:
            with _open_file(source, _NO_FILE) as file, _open_file(cutting.tokenizer, _NO_TOKENIZER) as tokenizer:
                ask = contract.encode(contract.ask(filename, cutting, self._limits))
                return self._parse(ask, (file.fileno(), tokenizer.fileno()))
        finally:
            with self._lock:
                self._busy = False

    def interrupt(self) -> None:
        """Kill the child that parses now, if any."""
        with self._lock:
            self._interrupted = self._busy
            child = self._child if self._busy else None
        if child is not None:
            child.kill()

    def close(self) -> None:
        self._drop()

    def _parse(self, ask: bytes, descriptors: tuple[int, int], *, again: bool = True) -> Document:
        """Ask the child, and once more after a kill: what kills a worker may kill its children first."""
        try:
            child = self._ensure_child()
            child.send(ask, descriptors)
            return self._take_answer(child.receive(self._limits.seconds, contract.largest_answer(self._limits)))
        except TooLarge:
            self._end()
            raise contract.invalid_answer() from None
        except TimeUp:
            self._end()
            raise invalid_file(_limit_message(f"{self._limits.seconds:g} seconds")) from None
        except Died:
            returncode = self._end()
            if returncode != -signal.SIGKILL or not again:
                raise self._describe_exit(returncode) from None
        except BaseException:  # any error may come from this child
            self._end()
            raise
        return self._parse(ask, descriptors, again=False)

    def _take_answer(self, message: bytes) -> Document:
        try:
            answer = contract.decode_answer(message)
        except msgspec.MsgspecError:
            raise contract.invalid_answer() from None
        if isinstance(answer, contract.Refusal):
            raise FileRefused(answer.code, answer.message)
        if not isinstance(answer, contract.Parsed):
            raise contract.invalid_answer()
        document = contract.check(answer.document, self._limits)
        self._files += 1
        if self._files >= FILES or answer.grown > self._limits.memory_bytes:
            self._drop()
        return document

    def _ensure_child(self) -> Child:
        if self._child is not None:
            return self._child
        for _ in range(STARTS):
            child = Child(self._policy, _KEPT)
            with self._lock:
                self._child, self._files = child, 0
                too_late = self._interrupted
            if too_late:
                raise Interrupted
            try:
                child.begin()
            except (Died, TimeUp):
                self._end()
            else:
                return child
        raise FileRefused("server_error", "The parser could not be started.")

    def _end(self) -> int:
        """Drop the child; raise Interrupted if that is why it ended."""
        returncode = self._drop()
        if self._interrupted:
            raise Interrupted from None
        return returncode

    def _drop(self) -> int:
        with self._lock:
            child, self._child = self._child, None
        return 0 if child is None else child.end()

    def _describe_exit(self, returncode: int) -> FileRefused:
        memory = f"{self._limits.memory_bytes >> 20} MiB of memory"
        cpu = f"{self._limits.cpu_seconds} seconds of CPU time"
        if returncode == -signal.SIGXCPU:
            return invalid_file(_limit_message(cpu))
        if returncode in (-signal.SIGABRT, -signal.SIGKILL):  # by Rust and by the kernel, without memory
            return invalid_file(_limit_message(memory))
        return invalid_file(_limit_message(f"{memory} and {cpu}"))


def limits_of(config: Settings) -> ParserLimits:
    """Return the limits of the settings. CPU time ends first only where a library starts more threads."""
    return ParserLimits(config.parse_seconds, cpu_seconds=math.ceil(config.parse_seconds))


def policy_of(limits: ParserLimits) -> Policy:
    """Return what the child may use: Tesseract's data, and no more memory than a child that has grown and one file."""
    tessdata = os.environ.get("TESSDATA_PREFIX")
    memory_bytes = _LIBRARIES_BYTES + 2 * limits.memory_bytes
    return Policy(
        "workers.retrieval.parsing.parser_child", readable=(tessdata,) if tessdata else (), memory_bytes=memory_bytes
    )


@contextmanager
def _open_file(path: Path, failure: str) -> Iterator[BinaryIO]:
    """Open a file to read. Raises FileRefused."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileRefused("server_error", failure) from error
    with file:
        yield file


def _limit_message(limit: str) -> str:
    return f"The file could not be parsed within its limits of {limit}."
