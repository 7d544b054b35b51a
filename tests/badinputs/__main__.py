"""`python -m tests.badinputs [--full] [--only AREA]`: every case in a table; exit code 1 if one fails.

`--full` sends what the tests send in a smaller size as large as it can be, all of what they send a choice of, and waits
as long as the product does.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.badinputs.case import Result, Worlds
from tests.badinputs.cases import CASES

_HEAD = "| area | case | expected | got | ms | MB |\n|---|---|---|---|---:|---:|"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.badinputs", description=__doc__)
    parser.add_argument("--full", action="store_true", help="everything at its full size")
    parser.add_argument("--only", action="append", help="this area; any number of times")
    options = parser.parse_args(arguments)
    chosen = [
        case for case in CASES if (not options.only or case.area in options.only) and (options.full or not case.full)
    ]
    results, began = [], time.monotonic()
    print(_HEAD, flush=True)
    with Worlds(full=options.full) as worlds:
        for case in chosen:
            results.append(worlds.judge(case))
            print(_row(results[-1]), flush=True)
    print(f"\n{_summary(results)}, {time.monotonic() - began:.0f} s")
    return 0 if all(result.passed for result in results) else 1


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
