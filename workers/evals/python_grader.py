"""Run python graders in the sandbox, one item at a time.

    run ── source, item, sample in a sealed file in memory ──▶ template ── fork ──▶ the item's process
        ◀──────────── a score, the code's error, or a fault of the sandbox ────────

The template serves one project: what it remembers of one project's errors, no process of another one inherits.
"""

import fcntl
import json
import logging
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from jobs.evals.grading import PYTHON_RUNTIME, PYTHON_SERVER, GradingError
from jobs.programs import probe_sandbox
from jobs.timings import Timings
from workers.evals.grader_child import Result, Run, decode_result, encode
from workers.runtime.context import Standing
from workers.sandbox.child import Child, Died, TimeUp
from workers.sandbox.confinement import Policy

log = logging.getLogger(__name__)
_LARGEST_RESULT: Final = 1 << 17
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
#: Seconds beyond those of the code in which the template answers.
_MARGIN: Final = 30.0


class PythonSandbox:
    """The template process of python graders. A thread that has called `run` must live on while the object is used."""

    def __init__(self, timings: Timings = Timings()) -> None:
        self._seconds = timings.python_grader
        self._child: Child | None = None
        self._project = ""

    def run(self, project: str, source: str, item: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
        """Return what `grade(sample, item)` of `source` returns.

        Raises: GradingError, with the score 0 where the code raised an error.
        """
        raw = json.dumps({"source": source, "item": item, "sample": sample}).encode()
        result = self._ask(project, raw)
        if result.fault:
            raise GradingError(PYTHON_SERVER, result.fault)
        if result.score is None:
            raise GradingError(PYTHON_RUNTIME, result.error, 0.0)
        return result.score

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _ask(self, project: str, raw: bytes) -> Result:
        """Return the template's answer; replace a template that gives none, which says nothing about the code."""
        descriptor = _sealed(raw)
        try:
            child = self._started(project)
            child.send(encode(Run(self._seconds)), [descriptor])
            return decode_result(child.receive(self._seconds + _MARGIN, _LARGEST_RESULT))
        except (Died, TimeUp, msgspec.MsgspecError) as error:
            log.warning("grader_sandbox_replaced", extra={"reason": type(error).__name__})
            self.close()
            return Result(fault="The sandbox of python graders gave no answer.")
        finally:
            os.close(descriptor)

    def _started(self, project: str) -> Child:
        """Return the project's template. Raises: Died, TimeUp, GradingError, where a part of the sandbox is missing."""
        if self._project != project:
            self.close()
        if self._child is None:
            self._child, self._project = Child(Policy("workers.evals.grader_child", forks=True)), project
            if missing := self._child.begin():
                self.close()
                raise GradingError(PYTHON_SERVER, f"The sandbox of python graders lacks {', '.join(missing)}.")
        return self._child


def look_for_sandbox(standing: Standing) -> None:
    """Record in the worker's row which parts the sandbox lacks here, for the API to refuse graders that cannot run."""
    with suppress(subprocess.TimeoutExpired):
        probe = probe_sandbox(forks=True)
        standing.sandbox_lacks = probe.stdout.split() if probe.returncode == 0 else None
    if standing.sandbox_lacks != []:
        log.warning("grader_sandbox_unavailable", extra={"missing": standing.sandbox_lacks})


def _sealed(raw: bytes) -> int:
    """Return a descriptor of a file in memory that nobody can change."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(raw)
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
