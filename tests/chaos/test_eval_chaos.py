"""A short chaos run over runs of evals: whatever is killed, every item is graded exactly once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.load import Mix
from tests.chaos.table import shown

# The first test waits for the whole run: two minutes on a quiet machine.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(1800)]

_SEED = 23
_PATIENCE = 4.0  # a busy machine takes minutes to start the deployment
_FAULTS = ("cpu", "gpu", "dispatcher", "cpu, main alone", "web", "cpu", "cpu zombie")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    folder: Path = tmp_path_factory.mktemp("chaos")
    mix = Mix(lines=(50, 100), poison=(), cancelled=0, responses=0, stores=0, repeated=False, evaluated=3)
    made = Campaign(folder, _SEED, mix=mix, width=1, patience=_PATIENCE)
    with made.running():
        made.load.feeding.set()
        made.go_on_until(lambda: made.load.evaluators.evaluations, 120, "there are runs")
        made.strike(_FAULTS, wait=(0.5, 1.5))
        made.go_on_until(lambda: _completed(made) >= 5, 180, "five runs are completed")
        made.drain()
        made.judge()
        made.stop()
        print(shown(made))
        yield made


def _completed(campaign: Campaign) -> int:
    return sum(evaluation.status == "completed" for evaluation in campaign.load.evaluators.evaluations)


def test_every_item_is_graded_once_whatever_was_killed(campaign: Campaign) -> None:
    assert not campaign.journal.violations, campaign.journal.story()


def test_runs_went_on_while_workers_were_killed(campaign: Campaign) -> None:
    assert [fault.name for fault in campaign.struck] == list(_FAULTS)
    assert _completed(campaign) >= 5
