"""A short campaign over jobs of one kind, for tests that read what came of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.campaign import Campaign
from tests.chaos.load import Mix
from tests.chaos.table import shown

#: `make verify` has other tests beside this one: processes stand still for more than a lease of three seconds.
_PATIENCE = 4.0
_BEGUN_SECONDS, _ENOUGH_SECONDS = 120, 180

#: Few batches and nothing else: a test adds the jobs that it is about.
QUIET = Mix(lines=(50, 100), poison=(), cancelled=0, responses=0, stores=0, repeated=False)

Condition = tuple[Callable[[Campaign], object], str]


@contextmanager
def short_campaign(
    folder: Path, seed: int, mix: Mix, faults: Sequence[str], *, begun: Condition, enough: Condition
) -> Iterator[Campaign]:
    """Strike with `faults` once the campaign has `begun`, go on until there is `enough`, and judge.

    A condition has its name for the error.
    """
    campaign = Campaign(folder, seed, mix=mix, width=1, patience=_PATIENCE)
    with campaign.running():
        campaign.load.feeding.set()
        campaign.go_on_until(lambda: begun[0](campaign), _BEGUN_SECONDS, begun[1])
        campaign.strike(faults, wait=(0.5, 1.5))
        campaign.go_on_until(lambda: enough[0](campaign), _ENOUGH_SECONDS, enough[1])
        campaign.drain()
        campaign.judge()
        campaign.stop()
        print(shown(campaign))
        yield campaign
