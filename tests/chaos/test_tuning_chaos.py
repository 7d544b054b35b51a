"""A short chaos run over trainings and the models that they make: whatever is killed, the promises hold."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.faults import TUNING_FAULTS
from tests.chaos.load import Mix
from tests.chaos.table import shown
from tests.support.stand_ins import BASE

# The first test waits for the whole run: three minutes on a quiet machine.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(1800)]

#: `make verify` has other tests beside this one: processes stand still for more than a lease of three seconds.
_PATIENCE = 4.0

_SEED = 22
_FAULTS = ("trainer", "tuned", "finetune", "trainer", "finetune, main alone", "tuned", "finetune zombie")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    folder: Path = tmp_path_factory.mktemp("chaos")
    mix = Mix(lines=(50, 100), poison=(), cancelled=0, responses=0, stores=0, repeated=False, tuned=2)
    made = Campaign(folder, _SEED, mix=mix, width=1, patience=_PATIENCE)
    with made.running():
        made.load.feeding.set()
        made.go_on_until(lambda: made.load.tuners.models, 120, "there are checkpoints")
        made.strike(_FAULTS, wait=(0.5, 1.5))
        made.go_on_until(lambda: _was_trained(made), 180, "a job was trained to its end, and asked for")
        made.drain()
        made.judge()
        made.stop()
        print(shown(made))
        yield made


def _was_trained(campaign: Campaign) -> bool:
    tuners = campaign.load.tuners
    return any(tuning.status == "succeeded" for tuning in tuners.tunings) and len(tuners.answers) >= 20


def test_every_training_keeps_every_promise_whatever_was_killed(campaign: Campaign) -> None:
    assert not campaign.journal.violations, campaign.journal.story()


def test_models_were_asked_for_while_trainings_were_killed(campaign: Campaign) -> None:
    asked = {answer.model for answer in campaign.load.tuners.answers}

    assert [fault.name for fault in campaign.struck] == list(_FAULTS)
    assert set(_FAULTS) <= TUNING_FAULTS.keys()
    assert len(asked - {BASE}) >= 3
