"""A short chaos run over runs of evals: whatever is killed, every item is graded exactly once."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.short import QUIET, short_campaign

# The first test waits for the whole run: two minutes on a quiet machine.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

_FAULTS = ("evaluate", "gpu", "dispatcher", "evaluate, main alone", "web", "cpu", "evaluate zombie")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    begun = lambda campaign: campaign.load.evaluators.jobs, "there are runs"
    enough = lambda campaign: _completed(campaign) >= 5, "five runs are completed"
    folder, mix = tmp_path_factory.mktemp("chaos"), replace(QUIET, evaluated=3)
    with short_campaign(folder, 23, mix, _FAULTS, begun=begun, enough=enough) as campaign:
        yield campaign


def _completed(campaign: Campaign) -> int:
    return sum(evaluation.status == "completed" for evaluation in campaign.load.evaluators.jobs)


def test_every_item_is_graded_once_despite_kills(campaign: Campaign) -> None:
    assert not campaign.journal.violations, campaign.journal.story()


def test_runs_went_on_while_workers_were_killed(campaign: Campaign) -> None:
    assert [fault.name for fault in campaign.struck] == list(_FAULTS)
    assert _completed(campaign) >= 5
