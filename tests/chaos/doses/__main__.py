"""`python -m tests.chaos.doses F9 F11`: single faults, each in its dose, and a row of a table for each.

Without names it runs all. `--share 0.3` is a third of each dose; the row names the share.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.doses.dose import HEAD, Given, Outcome, Run, row
from tests.chaos.doses.table import DOSES


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.doses", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="DOSE", help=f"of {', '.join(DOSES)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of each dose")
    parser.add_argument("--keep", type=Path, help="the folder of the runs, kept afterwards")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in DOSES]:
        parser.error(f"no such dose: {', '.join(unknown)}")
    print(HEAD, flush=True)
    violations = 0
    for name in options.names or DOSES:
        began = time.monotonic()
        outcome = _run(name, DOSES[name], options)
        print(row(name, outcome, time.monotonic() - began), flush=True)
        violations += len(outcome.violations)
    return 1 if violations else 0


def _run(name: str, run: Run, options: argparse.Namespace) -> Outcome:
    """Run a dose. A dose that cannot be given is a violation, and the next one is given all the same."""
    rng = random.Random(f"{options.seed} {name}")
    try:
        if options.keep:
            folder = options.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            return run(Given(folder, rng, options.share))
        with tempfile.TemporaryDirectory(prefix="nightmill-dose-") as made:
            return run(Given(Path(made), rng, options.share))
    except Exception as error:  # noqa: BLE001 (whatever it is: the row says so, and the exit code)
        traceback.print_exc()
        return Outcome("not given", [], [f"{type(error).__name__}: {error}"])


if __name__ == "__main__":
    sys.exit(main())
