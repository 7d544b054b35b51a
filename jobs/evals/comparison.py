"""Compare two runs of an eval over the same items: pure functions of their output items.

    run A ──┐ paired by the hash of the item ─▶ for each criterion: both means, the difference with an interval, tests
    run B ──┘ items of one run only are left out, and counted

The interval is a paired bootstrap of the difference of the means. Whether an item passes is tested by McNemar's exact
test, a score by the sign test. Both ask how likely so uneven a count of better and worse items is by chance.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ROUNDS: Final = 2000
LEVEL: Final = 0.95
#: Numbers that a bootstrap holds at once.
_HELD: Final = 1_000_000
OVERALL: Final = "all criteria"

Items = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One item in both runs."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pairing:
    """The items of both runs, and the ids of the output items that have no partner in the other run."""

    pairs: list[Pair]
    only_first: list[str]
    only_second: list[str]


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


def pair_items(first: Items, second: Items) -> Pairing:
    """Pair the items of two runs. Equal items, and samples of one item, are paired in their order."""
    by_key = _by_key(first)
    others = _by_key(second)
    pairs = [Pair(item, others[key]) for key, item in by_key.items() if key in others]
    only_first, only_second = (
        [str(item["id"]) for key, item in own.items() if key not in other]
        for own, other in ((by_key, others), (others, by_key))
    )
    return Pairing(pairs, only_first, only_second)


def _by_key(items: Items) -> dict[tuple[str, int], Mapping[str, Any]]:
    seen = Counter[str]()
    keyed = {}
    for item in items:
        name = key_of(item["datasource_item"])
        keyed[name, seen[name]] = item
        seen[name] += 1
    return keyed


def key_of(item: Mapping[str, Any]) -> str:
    """Return the hash of an item, which does not depend on the order of its fields."""
    return hashlib.sha256(json.dumps(item, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def compare(pairs: Sequence[Pair]) -> list[Comparison]:
    """Compare two runs by each criterion that both have, and by whether items pass all criteria."""
    names = dict.fromkeys(result["name"] for pair in pairs for result in pair.first["results"])
    compared = [_compared(OVERALL, [(_passes(pair.first), _passes(pair.second)) for pair in pairs])]
    compared += [
        _compared(name, [(score_of(pair.first, name), score_of(pair.second, name)) for pair in pairs]) for name in names
    ]
    return [comparison for comparison in compared if comparison is not None]


def _passes(item: Mapping[str, Any]) -> float | None:
    return None if item["status"] == "error" else float(item["status"] == "pass")


def score_of(item: Mapping[str, Any], criterion: str) -> float | None:
    """Return the score of an item by a criterion; None where it has none."""
    scores = (result["score"] for result in item["results"] if result["name"] == criterion)
    return next((float(score) for score in scores if score is not None), None)


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
    losses = [(_loss(pair), position) for position, pair in enumerate(pairs)]
    return [pairs[position] for loss, position in sorted(losses)[:limit] if loss < 0]


def _loss(pair: Pair) -> float:
    names = [result["name"] for result in pair.first["results"]]
    scores = ((score_of(pair.first, name), score_of(pair.second, name)) for name in names)
    return math.fsum(second - first for first, second in scores if first is not None and second is not None)


def slices(pairs: Sequence[Pair], path: str) -> dict[str, list[Pair]]:
    """Return the pairs by the value at `path` in their items, such as `item.language`."""
    parts = path.removeprefix("item.").split(".")
    by_value: dict[str, list[Pair]] = {}
    for pair in pairs:
        value: Any = pair.first["datasource_item"]
        for part in parts:
            value = value.get(part) if isinstance(value, Mapping) else None
        by_value.setdefault("(none)" if value is None else str(value), []).append(pair)
    return dict(sorted(by_value.items()))


def gaps(groups: Mapping[str, Sequence[Pair]]) -> list[Gap]:
    """Return for each criterion and run how far apart the slices are; nothing for fewer than two slices with scores."""
    names = dict.fromkeys(
        result["name"] for pairs in groups.values() for pair in pairs for result in pair.first["results"]
    )
    rows = [_gap(groups, name, run) for name in names for run in ("first", "second")]
    return [gap for gap in rows if gap is not None]


def _gap(groups: Mapping[str, Sequence[Pair]], criterion: str, run: str) -> Gap | None:
    scores = {
        value: [score for pair in pairs if (score := score_of(getattr(pair, run), criterion)) is not None]
        for value, pairs in groups.items()
    }
    means = {value: math.fsum(known) / len(known) for value, known in scores.items() if known}
    if len(means) < 2:
        return None
    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    low, high = _interval(_means(scores[highest], ROUNDS, 1) - _means(scores[lowest], ROUNDS, 0))
    return Gap(criterion, run, highest, lowest, means[highest] - means[lowest], low, high)
