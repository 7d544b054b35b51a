"""A short chaos run over pipelines: whatever is killed, each step makes one job, and every line comes to its end."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.short import QUIET, short_campaign

# The first test waits for the whole run: two minutes on a quiet machine.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

_FAULTS = ("cpu", "dispatcher", "cpu, main alone", "gpu", "web", "evaluate", "cpu zombie")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    begun = lambda campaign: campaign.load.pipeline_clients.jobs, "there are pipelines"
    enough = lambda campaign: _completed(campaign) >= 5, "five pipelines are completed"
    folder, mix = tmp_path_factory.mktemp("chaos"), replace(QUIET, pipelines=3)
    with short_campaign(folder, 39, mix, _FAULTS, begun=begun, enough=enough) as campaign:
        yield campaign


def _completed(campaign: Campaign) -> int:
    return sum(pipeline.status == "completed" for pipeline in campaign.load.pipeline_clients.jobs)


def test_every_line_is_answered_collected_and_graded_once_despite_kills(campaign: Campaign) -> None:
    assert not campaign.journal.violations, campaign.journal.story()


def test_pipelines_went_on_while_workers_were_killed(campaign: Campaign) -> None:
    assert [fault.name for fault in campaign.struck] == list(_FAULTS)
    assert _completed(campaign) >= 5
