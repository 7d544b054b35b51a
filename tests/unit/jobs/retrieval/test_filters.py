"""Filters: what holds for which attributes."""

from typing import Any

import pytest

from jobs.retrieval.filters import holds

FILE = {"year": 2026, "score": 0.5, "name": "kiwi", "open": True, "zero": 0, "empty": ""}


def condition(kind: str, key: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


@pytest.mark.parametrize(
    ("kind", "key", "value", "wanted"),
    [
        ("eq", "year", 2026, True),
        ("eq", "year", 2026.0, True),
        ("eq", "year", 2025, False),
        ("eq", "year", "2026", False),
        ("eq", "open", True, True),
        ("eq", "open", 1, False),
        ("eq", "zero", False, False),
        ("eq", "empty", "", True),
        ("ne", "year", 2025, True),
        ("ne", "year", 2026, False),
        ("ne", "year", "2026", True),
        ("gt", "year", 2025, True),
        ("gt", "year", 2026, False),
        ("gt", "score", 0, True),
        ("gt", "name", "kiva", True),
        ("gt", "name", 1, False),
        ("gt", "open", 0, False),
        ("gte", "year", 2026, True),
        ("gte", "year", 2027, False),
        ("lt", "year", 2027, True),
        ("lt", "score", 0.5, False),
        ("lt", "name", "kiwj", True),
        ("lte", "score", 0.5, True),
        ("lte", "year", "3000", False),
        ("in", "name", ["emu", "kiwi"], True),
        ("in", "name", [], False),
        ("in", "open", [1], False),
        ("nin", "name", ["emu"], True),
        ("nin", "name", ["kiwi"], False),
        ("nin", "name", [], True),
    ],
)
def test_comparisons(kind: str, key: str, value: Any, wanted: bool) -> None:
    assert holds(condition(kind, key, value), FILE) is wanted


@pytest.mark.parametrize("attributes", [None, {}, {"other": 1}])
@pytest.mark.parametrize("kind", ["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"])
def test_an_attribute_that_is_missing_equals_nothing(kind: str, attributes: dict[str, Any] | None) -> None:
    value = ["x"] if kind in ("in", "nin") else "x"

    assert holds(condition(kind, "name", value), attributes) is (kind in ("ne", "nin"))


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("and", [2026, 2026], True),
        ("and", [2026, 1], False),
        ("or", [1, 2026], True),
        ("or", [1, 2], False),
    ],
)
def test_and_or(kind: str, values: list[int], wanted: bool) -> None:
    both = {"type": kind, "filters": [condition("eq", "year", value) for value in values]}

    assert holds(both, FILE) is wanted


def test_filters_in_filters_twenty_deep() -> None:
    deep = condition("eq", "year", 2026)
    for level in range(19):
        deep = {"type": ("and", "or")[level % 2], "filters": [deep]}

    assert holds(deep, FILE)
    assert not holds(deep, {"year": 1})
