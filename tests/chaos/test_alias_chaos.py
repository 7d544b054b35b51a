"""A short chaos run over aliases and promotions: whatever is killed, each request is answered by the model it names."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.short import QUIET, short_campaign

# The first test waits for the whole run: three minutes on a quiet machine.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

_FAULTS = ("dispatcher", "web", "gpu", "evaluate", "dispatcher, SIGTERM", "cpu", "broker", "web", "dispatcher zombie")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    begun = lambda campaign: campaign.load.alias_clients.is_planted, "a target fails at every request"
    enough = _was_rolled_back, "a roll-back is complete, and promotions have ended"
    folder, mix = tmp_path_factory.mktemp("chaos"), replace(QUIET, aliased=3, pipelines=1)
    with short_campaign(folder, 39, mix, _FAULTS, begun=begun, enough=enough) as campaign:
        yield campaign


def _was_rolled_back(campaign: Campaign) -> bool:
    return campaign.load.alias_clients.rollbacks >= 1 and _promoted(campaign) >= 2


def _promoted(campaign: Campaign) -> int:
    return sum(promotion.status == "promoted" for promotion in campaign.load.promotion_clients.jobs)


def test_each_request_is_answered_by_the_model_that_it_names_despite_kills(campaign: Campaign) -> None:
    assert not campaign.journal.violations, campaign.journal.story()


def test_aliases_were_moved_and_rolled_back_while_processes_were_killed(campaign: Campaign) -> None:
    assert [fault.name for fault in campaign.struck] == list(_FAULTS)
    assert _was_rolled_back(campaign)
    assert len({answer.header for answer in campaign.load.alias_clients.answers}) == 3
    assert campaign.load.routed_batches.jobs
