"""What pydantic finds wrong with a request, in OpenAI's words: 400 with `param` and `code`.

Only the first fault is told, as OpenAI does. Values are quoted at most 64 characters long.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.errors import InvalidRequest

_QUOTED = 64
_EXPECTED = {
    "string": "a string",
    "int": "an integer",
    "bool": "a boolean",
    "float": "a number",
    "dict": "an object",
    "list": "an array",
    "model": "an object",
    "model_attributes": "an object",
}


def explain(errors: Sequence[Any]) -> InvalidRequest:
    """The first of pydantic's errors as ours."""
    error: Mapping[str, Any] = errors[0]
    place = [part for part in error["loc"] if part != "[key]"]
    param = ".".join(map(str, place[1:])) if len(place) > 1 else None
    return _render(error, param)


def _render(error: Mapping[str, Any], param: str | None) -> InvalidRequest:
    kind = str(error["type"])
    words = _WORDS.get(kind)
    if words is not None:
        message, code = words(error, param)
        return InvalidRequest(message, param=param, code=code)
    base = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if base in _EXPECTED:
        got = _kind(error.get("input"))
        message = f"Invalid type for '{param}': expected {_EXPECTED[base]}, but got {got} instead."
        if param is None:
            message = f"The body must be a JSON object, but it is {got}."
        return InvalidRequest(message, param=param, code="invalid_type")
    return InvalidRequest(f"{_invalid(param)}{error['msg']}.", param=param, code="invalid_value")


def _invalid(param: str | None) -> str:
    """Before what is wrong with it; of the body as a whole that says enough."""
    return "" if param is None else f"Invalid '{param}': "


def _missing(_error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
    if param is None:
        return "A JSON body is required.", "missing_body"
    return f"Missing required parameter: '{param}'.", "missing_required_parameter"


def _unknown(_error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
    return f"Unknown parameter: '{clip(param)}'.", "unknown_parameter"


def _literal(error: Mapping[str, Any], _param: str | None) -> tuple[str, str]:
    expected = error["ctx"]["expected"].replace(" or ", " and ")
    return f"Invalid value: '{clip(error.get('input'))}'. Supported values are: {expected}.", "invalid_value"


def _value(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
    return f"{_invalid(param)}{error['ctx']['error']}", "invalid_value"


def _pattern(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
    return f"Invalid '{param}': '{clip(error.get('input'))}' is not in the expected format.", "invalid_value"


def _bound(side: str, sign: str, limit: str) -> Callable[[Mapping[str, Any], str | None], tuple[str, str]]:
    def words(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
        edge = "max" if side == "above" else "min"
        message = (
            f"Invalid '{param}': integer {side} {edge}imum value. "
            f"Expected a value {sign} {error['ctx'][limit]}, but got {clip(error.get('input'))} instead."
        )
        return message, f"integer_{side}_{edge}_value"

    return words


def _length(side: str, limit: str) -> Callable[[Mapping[str, Any], str | None], tuple[str, str]]:
    def words(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
        noun, unit = _measured(error.get("input"))
        edge, size = ("at most", "max") if side == "above" else ("at least", "min")
        adjective = {"above": "too long", "below": "too short"}[side]
        message = f"Invalid '{param}': {noun} {adjective}. Expected {edge} {error['ctx'][limit]} {unit}."
        return message, f"{noun}_{side}_{size}_{'properties' if noun == 'object' else 'length'}"

    return words


_WORDS: dict[str, Callable[[Mapping[str, Any], str | None], tuple[str, str]]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "literal_error": _literal,
    "enum": _literal,
    "value_error": _value,
    "string_pattern_mismatch": _pattern,
    "less_than_equal": _bound("above", "<=", "le"),
    "less_than": _bound("above", "<", "lt"),
    "greater_than_equal": _bound("below", ">=", "ge"),
    "greater_than": _bound("below", ">", "gt"),
    "string_too_long": _length("above", "max_length"),
    "string_too_short": _length("below", "min_length"),
    "too_long": _length("above", "max_length"),
    "too_short": _length("below", "min_length"),
}


def clip(value: object) -> str:
    """A value as quoted in a message: short, whatever it was."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**_QUOTED else "a very large number"
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"


def _measured(value: object) -> tuple[str, str]:
    if isinstance(value, dict):
        return "object", "properties"
    return ("array", "items") if isinstance(value, list | tuple) else ("string", "characters")


def _kind(value: object) -> str:
    """A JSON value's type with its article. Text stands here also for what a query held."""
    names: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a decimal number"),
        ((str, bytes), "a string"),
        (dict, "an object"),
        (list, "an array"),
    ]
    return next((name for kind, name in names if isinstance(value, kind)), "null")
