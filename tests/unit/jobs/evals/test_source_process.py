"""The check of the code of python graders: what is refused before a model is asked, and that a child bears the cost."""

import pytest

from jobs.errors import InvalidRequest
from jobs.evals import source_process
from jobs.evals.graders.python import MAX_SOURCE_BYTES
from jobs.evals.source_process import GraderSource, check, fault_of
from jobs.platform.children import ChildLimits


@pytest.mark.parametrize(
    "code",
    [
        "def grade(sample, item):\n    return 1",
        "async def grade(sample, item): ...",
        "grade = lambda sample, item: 1",
        "from math import sqrt as grade",
        "try:\n    import numpy\nexcept ImportError:\n    pass\nelse:\n    def grade(sample, item): return 1",
        "exec('def grade(sample, item): return 1')",
        "globals()['grade'] = print",
        "from m import *",
        "def make():\n    global grade\n    grade = print\nmake()",
        "x = '\\d'\ndef grade(sample, item): return 1",
    ],
)
def test_code_that_may_define_grade_is_taken(code: str) -> None:
    assert fault_of(code) is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def grade(:", "SyntaxError"),
        ("return 1", "SyntaxError"),
        ("def grade(sample, item):\nreturn 1", "IndentationError"),
        ("grade = 1\x00", "null bytes"),
        ("x = 1", "no function 'grade'"),
        ("def score(sample, item): return grade", "no function 'grade'"),
        ("class Grader:\n    def grade(self, sample, item): return 1", "no function 'grade'"),
        ("def outer():\n    def grade(sample, item): return 1", "no function 'grade'"),
        ("(" * 10_000, "too many nested"),
    ],
)
def test_code_that_cannot_grade_is_named(code: str, words: str) -> None:
    assert words in (fault_of(code) or "")


def test_first_code_that_cannot_grade_is_refused_at_its_field() -> None:
    good = GraderSource("testing_criteria[0].source", "def grade(sample, item): return 1")
    bad = [GraderSource(f"testing_criteria[{n}].source", "x") for n in (1, 2)]

    check([good])
    with pytest.raises(InvalidRequest) as refused:
        check([good, *bad])

    assert (refused.value.param, refused.value.code) == ("testing_criteria[1].source", "invalid_source")


@pytest.mark.parametrize(
    "code",
    [
        "-" * (MAX_SOURCE_BYTES - 1) + "1",
        "x" + ".a" * (MAX_SOURCE_BYTES // 2 - 1),
        "x = " + "[" * 90 + "]" * 90,
        "1;" * (MAX_SOURCE_BYTES // 2),
        "x = " + "f'{" * 60 + "1" + "}'" * 60,
    ],
    ids=["operators", "attributes", "lists", "statements", "strings"],
)
def test_hostile_code_ends_no_process_but_the_child(code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check([GraderSource("grader.source", code)])

    assert (refused.value.param, refused.value.code) == ("grader.source", "invalid_source")


def test_code_that_the_child_cannot_bear_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_process, "_LIMITS", ChildLimits(seconds=30, cpu_seconds=10, memory_bytes=150 << 20))

    with pytest.raises(InvalidRequest, match=r"MemoryError|needed more than"):
        check([GraderSource("grader.source", "1;" * (MAX_SOURCE_BYTES // 2))])
