"""docs/security.md names each area with the number of its cases, and each attack."""

import re
from collections import Counter

from tests.badinputs.attacks import ATTACKS
from tests.badinputs.cases import CASES
from tests.support.system import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()


def test_areas_and_counts_are_those_of_the_cases() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| (\d+) \|", PAGE, re.MULTILINE))

    assert {area: int(count) for area, count in rows.items()} == Counter(case.area for case in CASES)


def test_each_attack_has_a_row() -> None:
    assert re.findall(r"^\| `(\w+)`: ", PAGE, re.MULTILINE) == [attack.name for attack in ATTACKS]
