"""`python -m tests.chaos --kills 100 --seed 1 [--database-url postgresql://…]`: the long run, and its table."""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.campaign import Campaign
from tests.chaos.faults import FAULTS, deck
from tests.chaos.table import shown

_POISON = ("!reset", "!html", "!500", "!flaky2", "!crash", "!hang")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--database-url", default="", help="`postgresql` alone starts an embedded server")
    parser.add_argument("--only", default="", help="names of faults, comma-separated")
    parser.add_argument("--keep", type=Path, help="the folder of the run, kept afterwards")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nightmill-chaos-") as folder:
        campaign = Campaign(options.keep or Path(folder), options.seed, database_url=options.database_url)
        return run(campaign, options.kills, options.only)


def run(campaign: Campaign, kills: int, only: str) -> int:
    names = {name: FAULTS[name] for name in only.split(",")} if only else FAULTS
    campaign.folder.mkdir(parents=True, exist_ok=True)
    with campaign.running():
        campaign.calm(3)
        campaign.poison(_POISON)
        campaign.cancels(6)
        campaign.strike(deck(kills, campaign.scene.rng, names))
        campaign.drain()
        campaign.judge()
        campaign.stop()
        table = shown(campaign)
        errors = campaign.system.errors()
    print(table)
    print("\n".join(f"{name} logged {len(lines)} errors, the first: {lines[0]}" for name, lines in errors.items()))
    if campaign.journal.violations:
        print(campaign.journal.story())
    return 1 if campaign.journal.violations else 0


if __name__ == "__main__":
    sys.exit(main())
