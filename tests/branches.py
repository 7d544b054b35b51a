"""`python -m tests.branches REPORT.json`: the share of branches that the tests take, where it has to be 95 %.

REPORT is what `coverage json` writes. The worker core is `workers/` without its engines, which need their libraries and
devices.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

LEAST = 0.95
PARTS: dict[str, Callable[[str], bool]] = {
    "jobs": lambda path: path.startswith("jobs/"),
    "worker core": lambda path: path.startswith("workers/") and not path.startswith("workers/engines/"),
}


def main() -> int:
    files = json.loads(Path(sys.argv[1]).read_text())["files"]
    shares = {}
    for part, belongs in PARTS.items():
        sums = [one["summary"] for path, one in files.items() if belongs(path)]
        taken, all_of_them = (sum(one[key] for one in sums) for key in ("covered_branches", "num_branches"))
        shares[part] = taken / all_of_them
        print(f"{part}: {taken} of {all_of_them} branches, {shares[part]:.1%}")
    return int(min(shares.values()) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
