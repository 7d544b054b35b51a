"""The faults of a plan, and how late a job may start whose message died with an idle worker."""

import random

import pytest

from tests.chaos.faults import FAULTS, deck, late_start

pytestmark = pytest.mark.verify


@pytest.mark.parametrize("names", [["broker frozen"], ["gpu zombie", "database held"], ["gpu"], ["gpu", "broker full"]])
def test_only_these_faults_are_dealt_and_as_many_as_were_asked_for(names: list[str]) -> None:
    faults = {name: FAULTS[name] for name in names}
    dealt = deck(20, random.Random(3), faults)

    assert set(dealt) == set(names)
    assert sum(faults[name].kills for name in dealt) >= 20 or len(dealt) >= 20


def test_a_job_that_starts_late_is_a_violation() -> None:
    assert late_start("job-1", 14.9) == []
    assert "job-1 started after 15.1 s" in late_start("job-1", 15.1)[0]
    assert late_start("job-1", 15.1, patience=5) == []
