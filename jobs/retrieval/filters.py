"""Filters on attributes, as OpenAI's search takes them: comparisons, and `and` or `or` of filters.

A comparison of different types does not hold: text is compared with text, numbers with numbers, true with true. An
attribute that a file does not have equals nothing, so that `ne` and `nin` hold for it and nothing else does.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

Attributes = Mapping[str, Any]

_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "gt": lambda one, other: one > other,
    "gte": lambda one, other: one >= other,
    "lt": lambda one, other: one < other,
    "lte": lambda one, other: one <= other,
}


def holds(condition: Mapping[str, Any], attributes: Attributes | None) -> bool:
    """Whether a filter, which is well formed, lets a file with these attributes through."""
    kind = condition["type"]
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(holds(one, attributes) for one in condition["filters"])
    found, wanted = (attributes or {}).get(condition["key"]), condition["value"]
    if kind in ("in", "nin"):
        return any(_equal(found, one) for one in wanted) is (kind == "in")
    if kind in ("eq", "ne"):
        return _equal(found, wanted) is (kind == "eq")
    return _comparable(found, wanted) and bool(_ORDER[kind](found, wanted))


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one is not None and bool(one == other)


def _comparable(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return False
    return all(isinstance(value, str) for value in (one, other)) or all(
        isinstance(value, int | float) for value in (one, other)
    )
