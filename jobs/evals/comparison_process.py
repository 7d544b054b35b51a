"""Compare two runs in a child process, for a request that waits: `python -m jobs.evals.comparison_process`.

    output items of both runs, a line each, with an empty line between ─stdin─▶ child ─stdout─▶ Compared

The lines come from storage as they are: the parent holds those of one shard at a time.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from jobs.evals import comparison
from jobs.evals.comparison import PairedComparison
from jobs.platform import children
from jobs.platform.children import ChildLimits

MODULE: Final = "jobs.evals.comparison_process"
MAX_REGRESSIONS: Final = 50
#: The intervals of as many scores as are compared take some seconds.
_LIMITS: Final = ChildLimits(seconds=120, cpu_seconds=60, memory_bytes=2 << 30)


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """The comparison of two runs: numbers of items, a row for each criterion, and pairs of ids of the worst items.

    `items` are those of both runs, with `samples` pairs of samples; the samples of one run only are counted apart.
    """

    items: int
    samples: int
    only_first: int
    only_second: int
    rows: list[PairedComparison]
    regressions: list[tuple[str, str]]


def compare(first: Iterable[bytes], second: Iterable[bytes]) -> ComparedRuns:
    """Compare two runs, whose output items are lines of JSON. Raises: ChildFailed."""
    lines = itertools.chain(map(_line, first), [b"\n"], map(_line, second))
    return msgspec.json.decode(children.run(MODULE, lines, _LIMITS), type=ComparedRuns)


def _line(text: bytes) -> bytes:
    return text.strip() + b"\n"


def _items(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the items of one run."""
    return map(msgspec.json.Decoder(dict).decode, itertools.takewhile(bytes.strip, lines))


def main() -> None:
    """Compare the runs of standard input."""
    lines = iter(sys.stdin.buffer)
    pairing = comparison.pair_items(_items(lines), _items(lines))
    worst = comparison.regressions(pairing.pairs, MAX_REGRESSIONS)
    compared = ComparedRuns(
        pairing.items,
        len(pairing.pairs),
        pairing.only_first.count,
        pairing.only_second.count,
        comparison.compare(pairing.criteria, pairing.pairs),
        [(pair.first.id, pair.second.id) for pair in worst],
    )
    sys.stdout.buffer.write(msgspec.json.encode(compared))


if __name__ == "__main__":
    main()
