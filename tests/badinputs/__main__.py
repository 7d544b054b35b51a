"""`python -m tests.badinputs [--full] [--only AREA]`: every case in a table; exit code 1 if one fails.

`--full` sends what the tests send in a smaller size as large as it can be, all of what they send a choice of, and waits
as long as the product does.

A second table, of the area `neighbours`, shows what each attack by one key costs another project. `--against CHECKOUT`
gives each attack to the code of that checkout too, first, so that both can be compared; its verdict is not judged.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.badinputs import neighbours
from tests.badinputs.attacks import ATTACKS, Attack
from tests.badinputs.case import Case, Result, Worlds
from tests.badinputs.cases import CASES
from tests.support.system import ROOT

_HEAD = "| area | case | expected | got | ms | MB |\n|---|---|---|---|---:|---:|"
_NEIGHBOURS = "neighbours"
_FULL_DOSE = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.badinputs", description=__doc__)
    parser.add_argument("--full", action="store_true", help="everything at its full size")
    parser.add_argument("--only", action="append", help=f"this area, {_NEIGHBOURS} among them; any number of times")
    parser.add_argument("--attack", action="append", help=f"this one of {_NEIGHBOURS}; any number of times")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="attack the code of this checkout as well")
    options = parser.parse_args(arguments)
    chosen = [
        case for case in CASES if (not options.only or case.area in options.only) and (options.full or not case.full)
    ]
    attacks = [attack for attack in ATTACKS if not options.attack or attack.name in options.attack]
    passed = not chosen or _judge(chosen, full=options.full)
    if not options.only or _NEIGHBOURS in options.only:
        passed = _attack(attacks, options.against, _FULL_DOSE if options.full else 1.0) and passed
    return 0 if passed else 1


def _judge(chosen: Sequence[Case], *, full: bool) -> bool:
    """Print the table of the cases; return whether all of them passed."""
    results, began = [], time.monotonic()
    print(_HEAD, flush=True)
    with Worlds(full=full) as worlds:
        for case in chosen:
            results.append(worlds.judge(case))
            print(_row(results[-1]), flush=True)
    print(f"\n{_summary(results)}, {time.monotonic() - began:.0f} s")
    return all(result.passed for result in results)


def _attack(attacks: Sequence[Attack], against: Path | None, dose: float) -> bool:
    """Print the table of the attacks; return whether the others went on during each of them on this checkout."""
    costs, began = [], time.monotonic()
    print(f"\n{neighbours.HEAD}", flush=True)
    for attack in attacks:
        if against:
            print(neighbours.row(neighbours.costs(attack, against.absolute(), dose)), flush=True)
        costs.append(neighbours.costs(attack, ROOT, dose))
        print(neighbours.row(costs[-1]), flush=True)
    failed = [cost for cost in costs if cost.wrong]
    print(f"\n{len(costs)} attacks: the others did not go on during {len(failed)}, {time.monotonic() - began:.0f} s")
    return not failed


def _row(result: Result) -> str:
    case = result.case
    got = result.got if result.passed else f"**{result.got}**"
    cells = (
        case.area,
        case.name,
        case.expected,
        got,
        f"{result.slowest * 1000:.0f}",
        f"{result.growth / (1 << 20):.0f}",
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _summary(results: Sequence[Result]) -> str:
    all_, failed = Counter(one.case.area for one in results), [one for one in results if not one.passed]
    areas = ", ".join(f"{area} {count}" for area, count in all_.items())
    return f"{len(results)} cases ({areas}): {len(failed)} failed"


if __name__ == "__main__":
    sys.exit(main())
