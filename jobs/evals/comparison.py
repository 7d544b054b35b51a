"""Compare two runs of an eval over the same items: pure functions of their output items.

    run A ──┐ paired by the hash of the item ─▶ for each criterion: both means, the difference with an interval, tests
    run B ──┘ items of one run only are left out, and counted

An item is dropped as soon as its scores are noted: memory grows with the number of items, and not with their texts.

The interval is a paired bootstrap of the difference of the means. Whether an item passes is tested by McNemar's exact
test, a score by the sign test. Both ask how likely so uneven a count of better and worse items is by chance.
"""

import hashlib
import heapq
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jobs.evals.graders.base import MAX_SCORE

ROUNDS: Final = 2000
LEVEL: Final = 0.95
#: Numbers that a bootstrap holds at once.
_HELD: Final = 1_000_000
_SHOWN_P: Final = 0.001  # smaller p-values are shown as smaller than this one
OVERALL: Final = "all criteria"

#: Ids of items without a partner that are held.
NAMED: Final = 100
MAX_SLICES: Final = 100

Items = Iterable[Mapping[str, Any]]


class TooManySlices(ValueError):
    """A field of the items has more than `MAX_SLICES` values."""


@dataclass(frozen=True, slots=True)
class Graded:
    """The parts of an output item that are held: its id, and its scores at the positions of the criteria.

    A criterion without a score has NaN, or is beyond the end.
    """

    id: str
    scores: "array[float]"

    def score(self, position: int) -> float | None:
        """Return the score by the criterion at a position; None where there is none."""
        score = self.scores[position] if position < len(self.scores) else math.nan
        return None if math.isnan(score) else score


@dataclass(frozen=True, slots=True)
class Pair:
    """One item in both runs."""

    first: Graded
    second: Graded


@dataclass(slots=True)
class LeftOut:
    """The items of a run without a partner in the other run: how many there are, and the ids of the first `NAMED`."""

    count: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, item: Graded) -> None:
        self.count += 1
        if len(self.ids) < NAMED:
            self.ids.append(item.id)


@dataclass(frozen=True, slots=True)
class Pairing:
    """The items of both runs. `criteria` are the names at the positions of scores; `OVERALL` is the first.

    `slices` are the pairs by the value of the field that the caller asked for.
    """

    criteria: list[str]
    pairs: list[Pair]
    slices: dict[str, list[Pair]]
    only_first: LeftOut
    only_second: LeftOut


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs by one criterion, over the items that both could grade.

    `low` and `high` bound the difference of the means. `better` and `worse` count the items that changed from the first
    run to the second; `p_value` is that of the test of these counts.
    """

    criterion: str
    items: int
    first: float
    second: float
    low: float
    high: float
    better: int
    worse: int
    p_value: float

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def is_significant(self) -> bool:
        """Return whether the interval of the difference leaves out 0."""
        return self.low > 0 or self.high < 0

    @property
    def p_text(self) -> str:
        """Return the p-value for a table. No p-value is 0."""
        return f"{self.p_value:.3f}" if self.p_value >= _SHOWN_P else f"<{_SHOWN_P}"


@dataclass(frozen=True, slots=True)
class Gap:
    """How far apart the means of the slices of one run are by a criterion: the slice with the highest, and the lowest.

    `low` and `high` bound the difference of these two means.
    """

    criterion: str
    run: str
    highest: str
    lowest: str
    gap: float
    low: float
    high: float


def pair_items(first: Items, second: Items, slice_by: str = "") -> Pairing:
    """Pair the items of two runs. Equal items, and samples of one item, are paired in their order.

    The pairs are sliced by the value at the path `slice_by` in their items, such as `item.language`.

    Raises: TooManySlices.
    """
    positions: dict[str, int] = {}
    unpaired = {key: _graded(item, positions) for key, item in _by_key(first)}
    pairs: list[Pair] = []
    slices: dict[str, list[Pair]] = {}
    only_first, only_second = LeftOut(), LeftOut()
    for key, item in _by_key(second):
        graded, partner = _graded(item, positions), unpaired.pop(key, None)
        if partner is None:
            only_second.add(graded)
            continue
        pairs.append(Pair(partner, graded))
        if slice_by:
            slices.setdefault(_value_at(item["datasource_item"], slice_by), []).append(pairs[-1])
        if len(slices) > MAX_SLICES:
            raise TooManySlices(f"{slice_by} has more than {MAX_SLICES} values")
    for graded in unpaired.values():
        only_first.add(graded)
    return Pairing([OVERALL, *positions], pairs, dict(sorted(slices.items())), only_first, only_second)


def _by_key(items: Items) -> Iterator[tuple[bytes, Mapping[str, Any]]]:
    """Yield each item with the hash of its contents and the number of equal items before it."""
    seen = Counter[bytes]()
    for item in items:
        contents = key_of(item["datasource_item"])
        yield contents + seen[contents].to_bytes(4), item
        seen[contents] += 1


def key_of(item: Mapping[str, Any]) -> bytes:
    """Return the hash of an item, which does not depend on the order of its fields."""
    return hashlib.sha256(json.dumps(item, sort_keys=True, separators=(",", ":")).encode()).digest()


def _graded(item: Mapping[str, Any], positions: dict[str, int]) -> Graded:
    """Return what is held of an output item. A criterion that is not among the `positions` gets the next one."""
    status = item["status"]
    scores = array("d", [math.nan if status == "error" else float(status == "pass")])
    for result in item["results"]:
        position = positions.setdefault(result["name"], len(positions) + 1)
        scores.extend([math.nan] * (position + 1 - len(scores)))
        if result["score"] is not None:
            scores[position] = min(max(result["score"], -MAX_SCORE), MAX_SCORE)  # the sum of larger ones has no value
    return Graded(item["id"], scores)


def _value_at(item: Mapping[str, Any], path: str) -> str:
    value: Any = item
    for part in path.removeprefix("item.").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "(none)" if value is None else str(value)


def compare(criteria: Sequence[str], pairs: Sequence[Pair]) -> list[Comparison]:
    """Compare two runs by each criterion that both have, and by whether items pass all criteria."""
    compared = [
        _compared(name, [(pair.first.score(position), pair.second.score(position)) for pair in pairs])
        for position, name in enumerate(criteria)
    ]
    return [comparison for comparison in compared if comparison is not None]


def _compared(criterion: str, scores: Sequence[tuple[float | None, float | None]]) -> Comparison | None:
    known = [(first, second) for first, second in scores if first is not None and second is not None]
    if not known:
        return None
    differences = [second - first for first, second in known]
    better, worse = sum(change > 0 for change in differences), sum(change < 0 for change in differences)
    low, high = bootstrap(differences)
    first_mean, second_mean = (math.fsum(column) / len(known) for column in zip(*known, strict=True))
    return Comparison(criterion, len(known), first_mean, second_mean, low, high, better, worse, p_value(better, worse))


def bootstrap(
    values: Sequence[float], rounds: int = ROUNDS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Return an interval of the mean of `values`: percentiles of the means of resamples.

    The same values always get the same interval.
    """
    return _interval(_means(values, rounds, seed), level)


def _interval(means: Any, level: float = LEVEL) -> tuple[float, float]:
    import numpy as np

    tail = (1 - level) / 2 * 100
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _means(values: Sequence[float], rounds: int, seed: int) -> Any:
    """Return the means of resamples of `values`."""
    import numpy as np

    numbers, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    generator = np.random.default_rng(seed)
    at_once = max(1, _HELD // len(numbers))
    means: list[Any] = []
    for start in range(0, rounds, at_once):
        drawn = generator.multinomial(len(values), counts / len(values), size=min(at_once, rounds - start))
        means.append(drawn @ numbers / len(values))
    return np.concatenate(means)


def p_value(better: int, worse: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, which is the sign test of the items that changed."""
    changed, fewer = better + worse, min(better, worse)
    if not changed:
        return 1.0
    logs = (math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(math.exp(log - changed * math.log(2)) for log in logs))


def regressions(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """Return the items that became worst from the first run to the second: by all scores together, the worst first."""
    losses = ((_loss(pair), position) for position, pair in enumerate(pairs))
    return [pairs[position] for loss, position in heapq.nsmallest(limit, losses) if loss < 0]


def _loss(pair: Pair) -> float:
    scores = ((pair.first.score(n), pair.second.score(n)) for n in range(1, len(pair.first.scores)))
    return math.fsum(second - first for first, second in scores if first is not None and second is not None)


def gaps(criteria: Sequence[str], groups: Mapping[str, Sequence[Pair]]) -> list[Gap]:
    """Return for each criterion and run how far apart the slices are; nothing for fewer than two slices with scores."""
    rows = [
        _gap(
            {value: [getattr(pair, run).score(position) for pair in pairs] for value, pairs in groups.items()},
            name,
            run,
        )
        for position, name in enumerate(criteria)
        if position
        for run in ("first", "second")
    ]
    return [gap for gap in rows if gap is not None]


def _gap(groups: Mapping[str, Sequence[float | None]], criterion: str, run: str) -> Gap | None:
    scores = {value: [score for score in slice_ if score is not None] for value, slice_ in groups.items()}
    means = {value: math.fsum(known) / len(known) for value, known in scores.items() if known}
    if len(means) < 2:
        return None
    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    low, high = _interval(_means(scores[highest], ROUNDS, 1) - _means(scores[lowest], ROUNDS, 0))
    return Gap(criterion, run, highest, lowest, means[highest] - means[lowest], low, high)
