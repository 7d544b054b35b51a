"""A short chaos run over trainings and the models that they make: whatever is killed, the promises hold."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.faults import TUNING_FAULTS
from tests.chaos.short import QUIET, short_campaign
from tests.support.idle_workers import BASE

# The first test waits for the whole run: three minutes on a quiet machine.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

_FAULTS = ("trainer", "tuned", "finetune", "trainer", "finetune, main alone", "tuned", "finetune zombie")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    begun = lambda campaign: campaign.load.tuners.models, "there are checkpoints"
    enough = _was_trained, "a job was trained to its end, and asked for"
    folder, mix = tmp_path_factory.mktemp("chaos"), replace(QUIET, tuned=2)
    with short_campaign(folder, 22, mix, _FAULTS, begun=begun, enough=enough) as campaign:
        yield campaign


def _was_trained(campaign: Campaign) -> bool:
    tuners = campaign.load.tuners
    return any(tuning.status == "succeeded" for tuning in tuners.jobs) and len(tuners.answers) >= 20


def test_every_training_meets_every_guarantee_despite_kills(campaign: Campaign) -> None:
    assert not campaign.journal.violations, campaign.journal.story()


def test_tuned_models_answered_while_trainings_were_killed(campaign: Campaign) -> None:
    asked = {answer.model for answer in campaign.load.tuners.answers}

    assert [fault.name for fault in campaign.struck] == list(_FAULTS)
    assert set(_FAULTS) <= TUNING_FAULTS.keys()
    assert len(asked - {BASE}) >= 3
