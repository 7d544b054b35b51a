"""`python -m tests.simulation --seeds 10000 [--from 0]`: many worlds, on every core; those that fail are named.

`--seed N` plays one of them and prints its log.
"""

import argparse
import os
import sys
import time

from tests.simulation.many import database, many
from tests.simulation.play import Game, weather_of

_TELL_EVERY = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if options.seed is not None:
        return one(options.seed)
    began, failed = time.monotonic(), 0
    for played, (seed, wrong) in enumerate(many(options.first, options.seeds, options.processes), 1):
        if wrong:
            failed += 1
            print(f"seed {seed}: {'; '.join(wrong[:3])}", flush=True)
        if played % _TELL_EVERY == 0 or played == options.seeds:
            print(f"{played} seeds, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    return bool(failed)


def one(seed: int) -> int:
    with database() as db:
        game = Game(seed, weather_of(seed), db)
        wrong = game.play()
    print("\n".join([*game.world.log, *wrong]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
