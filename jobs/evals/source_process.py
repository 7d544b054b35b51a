"""Check the code of python graders in a child process, for a request that waits: `python -m jobs.evals.source_process`.

    fields of a request with code ─stdin─▶ child: compile each, look for `grade` ─stdout─▶ the first that fails

Nothing of the code is run. How much time and memory the compiler takes, and whether it survives, is up to the code.
"""

import re
import symtable
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from jobs.errors import InvalidRequest
from jobs.platform import children
from jobs.platform.children import ChildFailed, ChildLimits

if TYPE_CHECKING:  # the child needs none
    from jobs.evals.graders.base import Grader

MODULE: Final = "jobs.evals.source_process"
#: Code of 256 KiB takes a second and some 100 MiB.
_LIMITS: Final = ChildLimits(seconds=30, cpu_seconds=10, memory_bytes=1 << 30, answer_bytes=1 << 16)
#: Ways to define a name that show only when the code is run.
_DYNAMIC: Final = re.compile(r"\b(?:exec|globals|vars|locals|setattr)\b|\bimport\s*\*|\bglobal\s")
_SHOWN: Final = 300  # characters of an error


@dataclass(frozen=True, slots=True)
class GraderSource:
    """The code of a grader, and the field of the request that has it."""

    param: str
    code: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the code in a field."""

    param: str
    message: str


def sources_of(graders: "Mapping[str, Grader]") -> list[GraderSource]:
    """Return the code of graders, which are given by the fields of a request that have them."""
    return [
        GraderSource(f"{param}.{path}", code) for param, grader in graders.items() for path, code in grader.sources()
    ]


def check(sources: Sequence[GraderSource]) -> None:
    """Check that each code compiles and defines a function `grade`. Raises InvalidRequest."""
    try:
        raw = children.run(MODULE, [msgspec.json.encode(sources)], _LIMITS)
    except ChildFailed as failure:
        message = f"The code of the python graders could not be compiled: {failure}."
        raise InvalidRequest(message, param=sources[0].param, code="invalid_source") from failure
    fault = msgspec.json.decode(raw, type=Fault | None)
    if fault is not None:
        raise InvalidRequest(f"Invalid '{fault.param}': {fault.message}", param=fault.param, code="invalid_source")


def fault_of(code: str) -> str | None:
    """Return why no grade can come of the code; None where one can."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(code, "grader.py", "exec")
            names = symtable.symtable(code, "grader.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")[:_SHOWN]
    defined = "grade" in names.get_identifiers() and (
        names.lookup("grade").is_assigned() or names.lookup("grade").is_imported()
    )
    return None if defined or _DYNAMIC.search(code) else "the source defines no function 'grade'"


def main() -> None:
    """Check the sources of standard input."""
    sources = msgspec.json.decode(sys.stdin.buffer.read(), type=list[GraderSource])
    faults = (Fault(source.param, fault) for source in sources if (fault := fault_of(source.code)) is not None)
    sys.stdout.buffer.write(msgspec.json.encode(next(faults, None)))


if __name__ == "__main__":
    main()
