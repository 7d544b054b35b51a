"""Run python graders in the sandbox, one item at a time.

    run ── source, item, sample in a sealed file in memory ──▶ template ── fork ──▶ the item's process
        ◀── how the process ended, or a fault of the sandbox ─────┘                       │
        ◀── bytes: a score, or the code's error ──────────────────────────────────────────┘

The code may have written the bytes itself, so they are read and bounded here. They cannot say that the sandbox failed.
The template serves one project: what it remembers of one project's errors, no process of another one inherits.
"""

import fcntl
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from jobs.evals.graders.base import MAX_SCORE, PYTHON_RUNTIME, PYTHON_SERVER, GradingError
from jobs.programs import probe_sandbox
from jobs.timings import Timings
from workers.evals.grader_child import (
    MAX_ANSWER,
    MAX_ERROR,
    GraderAnswer,
    GraderOutcome,
    Run,
    decode_answer,
    decode_outcome,
    encode,
)
from workers.runtime.context import WorkerStatus
from workers.sandbox.child import START_SECONDS, Child, Died, TimeUp
from workers.sandbox.confinement import Policy

log = logging.getLogger(__name__)
_MAX_OUTCOME: Final = MAX_ANSWER + 4096
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
#: Seconds beyond those of the code in which the template answers.
_MARGIN: Final = 30.0
_LOOK_SECONDS: Final = 1.0  # between two looks at whether to stop


class RunStopped(Exception):
    """The run that the code belongs to has ended, so that its template was killed."""


class PythonSandbox:
    """The template process of python graders. A thread that has called `run` must live on while the object is used."""

    def __init__(self, timings: Timings = Timings(), stopped: Callable[[], bool] = lambda: False) -> None:
        """Take `stopped`, which says while code runs that nobody wants its score any more."""
        self._seconds = timings.python_grader
        self._stopped = stopped
        self._child: Child | None = None
        self._project = ""

    def run(
        self,
        project: str,
        source: str,
        item: Mapping[str, Any],
        sample: Mapping[str, Any],
        seconds: float | None = None,
    ) -> float:
        """Return what `grade(sample, item)` of `source` returns within `seconds`, or the time of an item.

        Raises: Stopped; GradingError, with the score 0 where the code raised an error.
        """
        raw = json.dumps({"source": source, "item": item, "sample": sample}).encode()
        outcome = self._ask(project, raw, self._seconds if seconds is None else seconds)
        if outcome.fault:
            raise GradingError(PYTHON_SERVER, outcome.fault)
        if outcome.error:
            raise GradingError(PYTHON_RUNTIME, outcome.error, 0.0)
        return _score(outcome.answer)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _ask(self, project: str, raw: bytes, seconds: float) -> GraderOutcome:
        """Return what the template says; replace a template that says nothing, which tells nothing about the code."""
        descriptor = _seal_input(raw)
        try:
            child = self._ensure_child(project)
            child.send(encode(Run(seconds)), [descriptor])
            self._await(child, seconds + _MARGIN)
            return decode_outcome(child.receive(_MARGIN, _MAX_OUTCOME))
        except (Died, TimeUp, msgspec.MsgspecError) as error:
            log.warning("grader_sandbox_replaced", extra={"reason": type(error).__name__})
            self.close()
            return GraderOutcome(fault="The sandbox of python graders gave no answer.")
        finally:
            os.close(descriptor)

    def _await(self, child: Child, seconds: float) -> None:
        """Wait until there is an answer to receive. Raises: TimeUp; Stopped, with the child killed."""
        deadline = time.monotonic() + seconds
        while not child.has_answer(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic()))):
            if self._stopped():
                self.close()
                raise RunStopped
            if time.monotonic() > deadline:
                raise TimeUp

    def _ensure_child(self, project: str) -> Child:
        """Return the project's template. Raises: Died, TimeUp, Stopped; GradingError, where a part is missing."""
        if self._project != project:
            self.close()
        if self._child is None:
            self._child, self._project = Child(Policy("workers.evals.grader_child", forks=True)), project
            self._await(self._child, START_SECONDS)
            if missing := self._child.begin():
                self.close()
                raise GradingError(PYTHON_SERVER, f"The sandbox of python graders lacks {', '.join(missing)}.")
        return self._child


def _score(answer: bytes) -> float:
    """Return the score in what the process of the code wrote. Raises: GradingError."""
    given = GraderAnswer()
    with suppress(msgspec.MsgspecError):
        given = decode_answer(answer)
    if given.score is None:
        error = _plain(given.error) or "SystemError: the code wrote into the pipe of its score"
        raise GradingError(PYTHON_RUNTIME, error, 0.0)
    if not abs(given.score) <= MAX_SCORE:  # not a number is not less than it either
        error = f"ValueError: grade returned {given.score:g}, not a finite number of at most {MAX_SCORE:g}"
        raise GradingError(PYTHON_RUNTIME, error, 0.0)
    return given.score


def _plain(text: str) -> str:
    """Return a text with spaces for its control characters, cut off at the length of an error."""
    head = text[:MAX_ERROR]
    return "".join(character if character.isprintable() or character == "\n" else " " for character in head)


def look_for_sandbox(standing: WorkerStatus, stop: threading.Event, timings: Timings = Timings()) -> None:
    """Record in the worker's row which parts the sandbox lacks here, for the API to refuse graders that cannot run.

    A probe that gives no answer, as on a busy machine, says nothing: look again until one does or `stop` is set.
    """
    while True:
        with suppress(subprocess.TimeoutExpired):
            probe = probe_sandbox(forks=True)
            standing.sandbox_lacks = probe.stdout.split() if probe.returncode == 0 else None
        if standing.sandbox_lacks != []:
            log.warning("grader_sandbox_unavailable", extra={"missing": standing.sandbox_lacks})
        if standing.sandbox_lacks is not None or stop.wait(timings.sandbox_retry):
            return


def _seal_input(raw: bytes) -> int:
    """Return a descriptor of a file in memory that nobody can change."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(raw)
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
