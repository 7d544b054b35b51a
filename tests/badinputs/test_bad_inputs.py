"""Bad inputs get the expected answer soon, in little memory, and leave nothing behind.

`make test` sends the first of each area but those of hundreds of requests, `make verify` all others.
"""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.badinputs.case import Case, Worlds
from tests.badinputs.cases import CASES

#: A test tells an answer that hangs from one that does not. Whether one comes as soon as it should, `make bad-inputs`
#: says, on a machine that does nothing else.
MARGIN = 60.0


SENT = [case for case in CASES if not case.full]
FIRST = {case.area: case.id for case in reversed(SENT) if case.area not in {"Fuzz", "Quota"}}
#: Where the first of an area takes long, another one that does not.
FIRST |= {case.area: case.id for case in SENT if (case.area, case.name) in {("Documents", "nothing"), ("JSON", "NaN")}}


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    with Worlds(margin=MARGIN) as worlds:
        yield worlds


def test_each_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.id for case in CASES).items() if count > 1] == []


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if FIRST.get(case.area) == case.id else pytest.mark.verify, id=ascii(case.id)[1:-1])
        for case in SENT
    ],
)
def test_bad_input_gets_expected_answer(worlds: Worlds, case: Case) -> None:
    result = worlds.judge(case)

    assert result.got == case.expected
