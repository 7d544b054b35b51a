"""The short chaos run: eleven faults of mixed kinds on SQLite and the embedded broker, and what must be true then.

`make chaos` is the long one. A failure prints the seed and the last events.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.faults import FAULTS, deck
from tests.chaos.judging import embedded_again, embedding_bound
from tests.chaos.load import Mix
from tests.chaos.table import shown

# The first test waits for the whole run: 90 s on a quiet machine, several times that beside other tests.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

_SEED = 20
_FAULTS = (
    "gpu",
    "web",
    "cpu",
    "broker, file lost",
    "dispatcher",
    "gpu idle",
    "gpu zombie",
    "broker",
    "io",
    "guard",
    "embed",
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    folder: Path = tmp_path_factory.mktemp("chaos")
    made = Campaign(
        folder, _SEED, patience=2, mix=Mix(lines=(150, 350), poison=("!reset", "!flaky2"), dependent=0.6), width=4
    )
    with made.running():
        made.calm(1)
        made.poison(["!crash"])
        made.cancels(1)
        made.strike(_FAULTS, wait=(0.5, 1.5))
        made.go_on_until(
            lambda: _had_their_turns(made), 120, "the folder and the caches are asked enough, a batch waits"
        )
        made.drain()
        made.judge()
        made.stop()
        print(shown(made))
        yield made


def _had_their_turns(campaign: Campaign) -> bool:
    """Return whether the folder was synced and searched, the caches gave again and were cleared, and a batch waited."""
    if not any(job.after for job in campaign.load.jobs):
        return False
    source_client, repeaters = campaign.load.source_client, campaign.load.repeaters
    again = [one.cached for repeater in repeaters for one in (*repeater.answers, *repeater.vectors)]
    return (
        source_client.synced >= 2
        and source_client.searches >= 3
        and any(again)
        and all(one.clearings for one in repeaters)
    )


def test_every_batch_meets_every_guarantee_despite_kills(campaign: Campaign) -> None:
    assert not campaign.journal.violations, campaign.journal.story()


def test_some_batches_waited_for_others(campaign: Campaign) -> None:
    assert any(job.after for job in campaign.load.jobs)


def test_the_feed_was_read_while_processes_were_killed(campaign: Campaign) -> None:
    """Check that there were events: the promises say that each was read once and in order."""
    assert len(campaign.reader.read) > 50


def test_the_faults_struck_a_deployment_that_was_at_work(campaign: Campaign) -> None:
    answered = sum(len(result.output) for result in campaign.results.values())

    assert [one.name for one in campaign.struck] == list(_FAULTS)
    assert len(campaign.results) >= 6
    assert answered > 300


def test_files_came_into_vector_stores_meanwhile_and_were_searched(campaign: Campaign) -> None:
    store_clients = campaign.load.store_clients

    assert sum(paper.status == "completed" for paper in store_clients.papers) >= 3
    assert store_clients.searches >= 3
    assert embedded_again(campaign) <= embedding_bound(campaign)


def test_rework_is_bounded_by_requests_in_flight(campaign: Campaign) -> None:
    assert campaign.rework() <= campaign.bound()


def test_no_process_logs_an_error_of_its_own(campaign: Campaign) -> None:
    """The broker's absence is told by Celery, which is not ours to hush."""
    errors = [line for lines in campaign.system.errors().values() for line in lines]

    assert [line for line in errors if "valkey.sock" not in line] == []


def test_fault_plan_follows_from_seed_and_has_enough_kills() -> None:
    kills = sum(fault.weight for fault in FAULTS.values() if fault.kills)  # so that the rarest fault has its turn

    dealt = deck(kills, random.Random(5))

    assert dealt == deck(kills, random.Random(5))
    assert dealt != deck(kills, random.Random(6))
    assert sum(FAULTS[name].kills for name in dealt) >= kills
    assert set(dealt) == set(FAULTS)
