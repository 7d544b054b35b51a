"""Check the filters of a search, and apply them to a file's attributes.

Filters are OpenAI's: comparisons, and `and` or `or` of filters. A comparison of different types is false: text is
compared with text, numbers with numbers, booleans with booleans. A missing attribute equals nothing: only `ne` and
`nin` are true for it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from jobs.batches.lines import quote
from jobs.errors import InvalidRequest

# ── checking ──

_DEEPEST: Final = 20
_MAX_CONDITIONS: Final = 500  # conditions and their values, all of them
_COMPARE: Final = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
_COMBINE: Final = ("and", "or")
_ORDERED: Final = ("gt", "gte", "lt", "lte")


def check_filter(value: Any, param: str) -> None:
    """Check that `value` is a well-formed filter.

    Raises: InvalidRequest, with the path of the error.
    """
    _check(value, param, 1, [0])


def _check(value: Any, param: str, depth: int, seen: list[int]) -> None:
    seen[0] += 1
    if depth > _DEEPEST or seen[0] > _MAX_CONDITIONS:
        message = f"Invalid '{param}': at most {_MAX_CONDITIONS} filters, at most {_DEEPEST} deep."
        raise InvalidRequest(message, param=param, code="invalid_value")
    if not isinstance(value, dict):
        raise _wrong_type(param, "an object")
    kind = value.get("type")
    if kind not in _COMPARE and kind not in _COMBINE:
        names = ", ".join(f"'{name}'" for name in (*_COMPARE, *_COMBINE))
        message = f"Invalid value: '{quote(str(kind))}'. Supported values are: {names}."
        raise InvalidRequest(message, param=f"{param}.type", code="invalid_value")
    names_allowed = {"type", "filters"} if kind in _COMBINE else {"type", "key", "value"}
    _check_names(value, names_allowed, param)
    if kind in _COMPARE:
        _compare(kind, value, param)
        seen[0] += len(value["value"]) if isinstance(value["value"], list) else 0
        return
    if not isinstance(value["filters"], list) or not value["filters"]:
        raise _wrong_type(f"{param}.filters", "a non-empty array")
    for index, inner in enumerate(value["filters"]):
        _check(inner, f"{param}.filters[{index}]", depth + 1, seen)


def _check_names(value: dict[str, Any], allowed: set[str], param: str) -> None:
    for name in sorted(allowed - value.keys()):
        message = f"Missing required parameter: '{param}.{name}'."
        raise InvalidRequest(message, param=f"{param}.{name}", code="missing_required_parameter")
    for name in sorted(value.keys() - allowed):
        message = f"Unknown parameter: '{quote(f'{param}.{name}')}'."
        raise InvalidRequest(message, param=quote(f"{param}.{name}"), code="unknown_parameter")


def _compare(kind: str, condition: dict[str, Any], param: str) -> None:
    key, value = condition["key"], condition["value"]
    if not isinstance(key, str) or not 1 <= len(key) <= 64:
        raise _wrong_type(f"{param}.key", "a string of 1 to 64 characters")
    if kind in ("in", "nin"):
        if not isinstance(value, list) or len(value) > _MAX_CONDITIONS or not all(_scalar(member) for member in value):
            raise _wrong_type(f"{param}.value", f"an array of at most {_MAX_CONDITIONS} strings, numbers or booleans")
    elif kind in _ORDERED and (not _scalar(value) or isinstance(value, bool)):
        raise _wrong_type(f"{param}.value", "a string or a number")
    elif not _scalar(value):
        raise _wrong_type(f"{param}.value", "a string, a number or a boolean")


def _scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)  # a boolean is an int


def _wrong_type(param: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{param}': expected {expected}.", param=param, code="invalid_type")


# ── matching ──

Attributes = Mapping[str, Any]

_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "gt": lambda left, right: left > right,
    "gte": lambda left, right: left >= right,
    "lt": lambda left, right: left < right,
    "lte": lambda left, right: left <= right,
}


def holds(condition: Mapping[str, Any], attributes: Attributes | None) -> bool:
    """Return whether a well-formed filter accepts a file with these attributes."""
    kind = condition["type"]
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(holds(nested, attributes) for nested in condition["filters"])
    attribute, operand = (attributes or {}).get(condition["key"]), condition["value"]
    if kind in ("in", "nin"):
        return any(_equal(attribute, member) for member in operand) is (kind == "in")
    if kind in ("eq", "ne"):
        return _equal(attribute, operand) is (kind == "eq")
    return _comparable(attribute, operand) and bool(_ORDER[kind](attribute, operand))


def _equal(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left is not None and bool(left == right)


def _comparable(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    return all(isinstance(value, str) for value in (left, right)) or all(
        isinstance(value, int | float) for value in (left, right)
    )
