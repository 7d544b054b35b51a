"""Compare two runs of an eval over the same items: pure functions of their output items.

    run A ──┐ paired by the hash of the item ─▶ the mean of each item's samples ─▶ for each criterion: both means,
    run B ──┘                                      the difference with an interval, a test, and the verdict

Samples of one run only are left out, and counted. An output item is dropped as soon as its scores are noted: memory
grows with the number of items, and not with their texts.

The unit is the item. Samples of one item depend on each other, so that their differences are averaged before anything
else is computed (Miller: Adding Error Bars to Evals, arXiv 2411.00640, 2024, §2.2).

    better, worse    the interval leaves out 0, the corrected p-value is below 0.05, and there are `MIN_ITEMS` items
    inconclusive     all else
"""

import hashlib
import heapq
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from jobs.evals import significance
from jobs.evals.graders.base import MAX_SCORE

#: Items without which nothing is decided.
MIN_ITEMS: Final = 20
_SHOWN_P: Final = 0.001  # smaller p-values are shown as smaller than this one
OVERALL: Final = "all criteria"

#: Ids of samples without a partner that are held.
NAMED: Final = 100
MAX_SLICES: Final = 100
_HASHED: Final = hashlib.sha256().digest_size

Items = Iterable[Mapping[str, Any]]
Verdict = Literal["better", "worse", "inconclusive"]


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
class ItemPair:
    """A sample of an item in both runs. Samples of one item have the same number `item`."""

    item: int
    first: Graded
    second: Graded


@dataclass(slots=True)
class LeftOut:
    """The samples of a run without a partner in the other run: how many, and the ids of the first `NAMED`."""

    count: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, item: Graded) -> None:
        self.count += 1
        if len(self.ids) < NAMED:
            self.ids.append(item.id)


@dataclass(frozen=True, slots=True)
class Pairing:
    """The samples of both runs. `criteria` are the names at the positions of scores; `OVERALL` is the first.

    `slices` are the pairs by the value of the field that the caller asked for.
    """

    criteria: list[str]
    pairs: list[ItemPair]
    slices: dict[str, list[ItemPair]]
    only_first: LeftOut
    only_second: LeftOut

    @property
    def items(self) -> int:
        """Return the number of items that both runs have."""
        return len({pair.item for pair in self.pairs})


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two runs by one criterion, over the `items` that both could grade, of which there are `samples` pairs.

    `first` and `second` are means over the items. `low` and `high` bound the difference of the means. `better` and
    `worse` count the items that changed from the first run to the second. `p_value` is that of the difference, and
    `p_adjusted` the same corrected for the number of comparisons. `items_needed` estimates how many more items would
    decide; None where there is a verdict already, or where the difference is 0 or too small for any number of items.

    `deviation` is the standard deviation of the differences. `tests` p-values were corrected together. `lost` counts
    the samples that only the first run has a score of. The interval and the test err with the probability `alpha`.
    """

    criterion: str
    items: int
    samples: int
    first: float
    second: float
    low: float
    high: float
    better: int
    worse: int
    p_value: float
    p_adjusted: float
    items_needed: int | None
    deviation: float = 0.0
    tests: int = 1
    lost: int = 0
    alpha: float = significance.ALPHA

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def verdict(self) -> Verdict:
        """Return whether the second run is better or worse; inconclusive unless the interval and the test agree."""
        if self.items < MIN_ITEMS or self.p_adjusted >= self.alpha:
            return "inconclusive"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "inconclusive"

    @property
    def is_significant(self) -> bool:
        """Return whether there is a verdict that is not inconclusive."""
        return self.verdict != "inconclusive"

    @property
    def verdict_text(self) -> str:
        """Return the verdict for a table, with the estimate of how many more items would decide."""
        return f"{self.verdict}, about {self.items_needed} more" if self.items_needed else self.verdict

    @property
    def items_text(self) -> str:
        """Return the number of items for a table, with that of samples where it is another."""
        return f"{self.items} ({self.samples} samples)" if self.samples != self.items else f"{self.items}"

    @property
    def p_text(self) -> str:
        """Return the corrected p-value for a table. No p-value is 0."""
        return f"{self.p_adjusted:.3f}" if self.p_adjusted >= _SHOWN_P else f"<{_SHOWN_P}"


@dataclass(frozen=True, slots=True)
class Gap:
    """The distance of the means of the slices of one run by a criterion: the slice with the highest, and the lowest.

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
    numbers: dict[bytes, int] = {}
    unpaired = {key: _read_grades(item, positions) for key, item in _key_items(first)}
    pairs: list[ItemPair] = []
    slices: dict[str, list[ItemPair]] = {}
    only_first, only_second = LeftOut(), LeftOut()
    for key, item in _key_items(second):
        graded, partner = _read_grades(item, positions), unpaired.pop(key, None)
        if partner is None:
            only_second.add(graded)
            continue
        pairs.append(ItemPair(numbers.setdefault(key[:_HASHED], len(numbers)), partner, graded))
        if slice_by:
            slices.setdefault(_value_at(item["datasource_item"], slice_by), []).append(pairs[-1])
        if len(slices) > MAX_SLICES:
            raise TooManySlices(f"{slice_by} has more than {MAX_SLICES} values")
    for graded in unpaired.values():
        only_first.add(graded)
    return Pairing([OVERALL, *positions], pairs, dict(sorted(slices.items())), only_first, only_second)


def _key_items(items: Items) -> Iterator[tuple[bytes, Mapping[str, Any]]]:
    """Yield each item with the hash of its contents and the number of equal items before it."""
    seen = Counter[bytes]()
    for item in items:
        contents = key_of(item["datasource_item"])
        yield contents + seen[contents].to_bytes(4), item
        seen[contents] += 1


def key_of(item: Mapping[str, Any]) -> bytes:
    """Return the hash of an item, which does not depend on the order of its fields."""
    return hashlib.sha256(json.dumps(item, sort_keys=True, separators=(",", ":")).encode()).digest()


def _read_grades(item: Mapping[str, Any], positions: dict[str, int]) -> Graded:
    """Return what is held of an output item. A criterion that is not among the `positions` gets the next one."""
    status = item["status"]
    scores = array("d", [math.nan if status == "error" else float(status == "pass")])
    for result in item["results"]:
        position = positions.setdefault(result["name"], len(positions) + 1)
        scores.extend([math.nan] * (position + 1 - len(scores)))
        if result["score"] is not None and not result.get("error"):  # code that failed has the score 0 beside its error
            scores[position] = min(max(result["score"], -MAX_SCORE), MAX_SCORE)  # the sum of larger ones has no value
    return Graded(item["id"], scores)


def _value_at(item: Mapping[str, Any], path: str) -> str:
    value: Any = item
    for part in path.removeprefix("item.").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "(none)" if value is None else str(value)


def compare(
    criteria: Sequence[str], pairs: Sequence[ItemPair], alpha: float = significance.ALPHA
) -> list[PairedComparison]:
    """Compare two runs by each criterion that both have, and by whether items pass all criteria."""
    return _decide(_scores(criteria, pairs), alpha)


def compare_slices(
    criteria: Sequence[str], slices: Mapping[str, Sequence[ItemPair]]
) -> list[tuple[str, PairedComparison]]:
    """Compare two runs in each slice. The p-values are corrected for all slices and criteria together."""
    columns = [(value, column) for value, pairs in slices.items() for column in _scores(criteria, pairs)]
    values = [value for value, _ in columns]
    return list(zip(values, _decide([column for _, column in columns]), strict=True))


@dataclass(frozen=True, slots=True)
class _Scores:
    """The mean score of each item in both runs by one criterion, and what the test of their differences gives."""

    criterion: str
    samples: int
    lost: int
    first: Sequence[float]
    second: Sequence[float]
    differences: Sequence[float]
    p_value: float


def _scores(criteria: Sequence[str], pairs: Sequence[ItemPair]) -> list[_Scores]:
    """Return the scores by each criterion of which both runs have any."""
    columns = []
    for position, criterion in enumerate(criteria):
        scores = [(pair.item, pair.first.score(position), pair.second.score(position)) for pair in pairs]
        known = [(item, first, second) for item, first, second in scores if first is not None and second is not None]
        if known:
            lost = sum(first is not None and second is None for _, first, second in scores)
            items, *both = zip(*known, strict=True)
            first, second = (_item_means(items, column) for column in both)
            p_value = significance.p_value(differences := second - first)
            columns.append(_Scores(criterion, len(known), lost, first, second, differences, p_value))
    return columns


def _item_means(items: Sequence[int], scores: Sequence[float]) -> Any:
    """Return the mean score of each item."""
    import numpy as np

    _, numbers = np.unique(items, return_inverse=True)
    return np.bincount(numbers, scores) / np.bincount(numbers)


def _decide(columns: Sequence[_Scores], alpha: float = significance.ALPHA) -> list[PairedComparison]:
    """Return the comparisons with p-values corrected together.

    A single criterion and "all criteria" ask the same: each is corrected alone.
    """
    asks_once = len({column.criterion for column in columns}) <= 2
    families: dict[str, list[int]] = {}
    for position, column in enumerate(columns):
        families.setdefault(column.criterion if asks_once else OVERALL, []).append(position)
    rows = {}
    for family in families.values():
        corrected = significance.correct([columns[position].p_value for position in family])
        for position, p_adjusted in zip(family, corrected, strict=True):
            rows[position] = _comparison(columns[position], p_adjusted, len(family), alpha)
    return [rows[position] for position in range(len(columns))]


def _comparison(column: _Scores, p_adjusted: float, tests: int, alpha: float) -> PairedComparison:
    """Return the comparison by one criterion, one of `tests` that are corrected together."""
    differences = column.differences
    changes, unit = significance.scale(differences)
    low, high = significance.interval(differences, alpha)
    row = PairedComparison(
        criterion=column.criterion,
        items=len(differences),
        samples=column.samples,
        first=math.fsum(column.first) / len(differences),
        second=math.fsum(column.second) / len(differences),
        low=low,
        high=high,
        better=int((changes > 0).sum()),
        worse=int((changes < 0).sum()),
        p_value=column.p_value,
        p_adjusted=p_adjusted,
        items_needed=None,
        deviation=float(changes.std()) * unit,
        tests=tests,
        lost=column.lost,
        alpha=alpha,
    )
    needed = None if row.is_significant else significance.items_needed(differences, tests, alpha)
    return row if needed is None else replace(row, items_needed=max(max(needed, MIN_ITEMS) - row.items, 1))


def regressions(pairs: Sequence[ItemPair], limit: int) -> list[ItemPair]:
    """Return the items with the largest regressions from the first run to the second, by all scores, worst first."""
    losses = ((_loss(pair), position) for position, pair in enumerate(pairs))
    return [pairs[position] for loss, position in heapq.nsmallest(limit, losses) if loss < 0]


def _loss(pair: ItemPair) -> float:
    scores = ((pair.first.score(n), pair.second.score(n)) for n in range(1, len(pair.first.scores)))
    return math.fsum(second - first for first, second in scores if first is not None and second is not None)


def gaps(criteria: Sequence[str], groups: Mapping[str, Sequence[ItemPair]]) -> list[Gap]:
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
    low, high = significance.gap_interval(scores[highest], scores[lowest])
    return Gap(criterion, run, highest, lowest, means[highest] - means[lowest], low, high)
