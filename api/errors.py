"""Render errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

    NightmillError ─▶ its status, its code          validation ─▶ 400 with `param` and `code` (`explain`)
    unknown route, method ─▶ 404, 405               anything else ─▶ 500, without a reason

Clients choose their exception by the status and obey `Retry-After` and `x-should-retry`. The SDK would retry a 408,
409, 429 or 507 by itself, so such answers say whether a retry makes sense where a wait of seconds is no help.

Like OpenAI, report only the first of pydantic's errors. Values are quoted with at most 64 characters. For a field of
several types pydantic reports an error for each type and adds the type's name to the path (`query.str`). The answer
gives the error for the type that the value has, with the value's path in the body, or lists all types.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from jobs.errors import (
    Conflict,
    InvalidRequest,
    NightmillError,
    NotFound,
    ProjectFull,
    RequestTimeout,
)

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """The details of an error. `param` names the invalid field, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


#: The error responses of all routes, for the OpenAPI document.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status.value: {"model": ErrorBody, "description": status.phrase}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.INSUFFICIENT_STORAGE,
    )
}


class MethodNotAllowed(NightmillError):
    """A request with a method that the route does not have."""

    text = "This URL does not take that method."
    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "invalid_request_error"
    code = "method_not_allowed"


#: The statuses of limits and permissions. Where waiting is no help, the answer says so.
_REFUSALS = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})


def respond(error: NightmillError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error."""
    given = {**error.headers, **(headers or {})}
    if error.retry_after is not None:
        given["Retry-After"] = str(error.retry_after)
    if isinstance(error, Conflict | RequestTimeout | ProjectFull):
        given["x-should-retry"] = "true" if error.retryable else "false"
    elif error.status in _REFUSALS and not error.retryable:
        given["x-should-retry"] = "false"
    return JSONResponse(describe(error), error.status, given)


def describe(error: NightmillError) -> dict[str, Any]:
    """Return the JSON of an error; also the last event of a broken stream."""
    detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
    return ErrorBody(error=detail).model_dump()


def log_failure(error: NightmillError) -> None:
    """Log an error that is no fault of the client's."""
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request_failed", extra={"error_type": type(error).__name__, "status": error.status.value})


def install(app: FastAPI) -> None:
    """Install the handlers that give all errors of the app this shape."""
    app.add_exception_handler(NightmillError, _answer_known_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _answer_unexpected_error)


async def _answer_known_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NightmillError)
    log_failure(error)
    return respond(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return respond(explain(error.errors(), error.body))


async def _http(request: Request, error: Exception) -> JSONResponse:
    """Answer Starlette's own errors, or the NightmillError that caused one while the body was read."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, NightmillError):
        return respond(error.__cause__)
    where = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = _describe_missing_resource(request) or f"Invalid URL ({where})"
        return respond(NotFound(message, code="unknown_url"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return respond(MethodNotAllowed(f"Not allowed: {where}"), dict(error.headers or {}))
    return respond(InvalidRequest(str(error.detail), code="invalid_request"))


def _describe_missing_resource(request: Request) -> str | None:
    """Return the text for a resource that is not served at all, OpenAI's among them; None for any other URL."""
    paths = [route.path for route in request.app.routes if getattr(route, "include_in_schema", False)]
    served = [path for path in paths if path.startswith(_VERSION)]
    resource = _VERSION + request.url.path.removeprefix(_VERSION).partition("/")[0]
    if not request.url.path.startswith(_VERSION) or any(f"{path}/".startswith(f"{resource}/") for path in served):
        return None
    names = {"organization", *(path.removeprefix(_VERSION).partition("/{")[0] for path in served)}
    roots = {name for name in names if not any(name.startswith(f"{other}/") for other in names)}
    return f"{clip(resource)} is not supported by Nightmill. Supported are: {', '.join(sorted(roots))}."


async def _answer_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an unexpected exception. This handler runs outside our middleware, so it sets the request id itself."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    log.error("request_crashed", exc_info=error, extra={"request_id": request_id})
    return respond(NightmillError(), {"x-request-id": request_id})


_VERSION = "/v1/"
_QUOTED = 64
_LOOKED_AT = 100  # errors of pydantic: a body may cause a million
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


def explain(errors: Sequence[Any], body: Any) -> InvalidRequest:
    """Return the first of pydantic's errors as an InvalidRequest.

    `body` is the parsed body, if the errors concern one.
    """
    source, *param_path = errors[0]["loc"]
    if source != "body":
        return _render(errors[0], _format_path(param_path))
    fault, types = _first([_Fault.of(error, body) for error in errors[:_LOOKED_AT]])
    if len(types) > 1:
        return _wrong_type(fault.error, fault.param, f"one of {types[0]}{_format_types(types[1:])}")
    return _render(fault.error, fault.param)


def too_long(value: object, param_path: Sequence[str | int], limit: int) -> InvalidRequest:
    """Return the error for an array or object at `param_path` that has more than `limit` members."""
    return _render({"type": "too_long", "input": value, "ctx": {"max_length": limit}}, _format_path(param_path))


@dataclass(frozen=True, slots=True)
class _Fault:
    """One of pydantic's errors. `real` tells which parts of its path exist in the body."""

    error: Mapping[str, Any]
    param_path: tuple[str | int, ...]
    real: tuple[bool, ...]

    @classmethod
    def of(cls, error: Mapping[str, Any], body: Any) -> "_Fault":
        param_path = error["loc"][1:]
        known, last = (param_path[:-1], (True,)) if error["type"] == "missing" and param_path else (param_path, ())
        real = _leading(known, body, lambda value: value is error["input"])
        if real is None:  # a key is wrong, or pydantic judged a converted value
            real = _leading(known, body, lambda _: True)
        return cls(error, param_path, (*(real or ()), *last))

    @property
    def param(self) -> str | None:
        """Return the path of the value in the body."""
        param = _format_path([part for part, real in zip(self.param_path, self.real, strict=True) if real])
        if not self.error["type"].startswith("union_tag_"):
            return param
        name = self.error["ctx"]["discriminator"].strip("'")
        return name if param is None else f"{param}.{name}"

    @property
    def expected(self) -> str | None:
        """Return the expected type, if the value has another."""
        return _EXPECTED.get(_base(self.error))


def _leading(param_path: Sequence[str | int], value: Any, is_end: Callable[[Any], bool]) -> tuple[bool, ...] | None:
    """Return which parts of the path are steps in `value` to one for which `is_end` is true; None if none lead there.

    As many parts as possible are steps.
    """
    if not param_path:
        return () if is_end(value) else None
    part, rest = param_path[0], param_path[1:]
    if part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value)):
        rest_steps = _leading(rest, value[part], is_end)
        if rest_steps is not None:
            return (True, *rest_steps)
    rest_steps = _leading(rest, value, is_end)
    return None if rest_steps is None else (False, *rest_steps)


def _first(faults: Sequence[_Fault]) -> tuple[_Fault, list[str]]:
    """Return the fault to report, and the possible types of its value if it has none of them."""
    fault, depth = faults[0], 0
    while depth < len(fault.param_path):
        if not fault.real[depth]:
            branches: dict[str | int, _Fault] = {}
            for candidate in faults:
                if candidate.param_path[:depth] == fault.param_path[:depth] and len(candidate.param_path) > depth:
                    branches.setdefault(candidate.param_path[depth], candidate)
            fitting = [
                candidate
                for candidate in branches.values()
                if len(candidate.param_path) > depth + 1 or candidate.expected is None
            ]
            if not fitting:
                return fault, list(dict.fromkeys(str(candidate.expected) for candidate in branches.values()))
            fault = fitting[0]
        depth += 1
    return fault, []


def _render(error: Mapping[str, Any], param: str | None) -> InvalidRequest:
    words = _WORDS.get(str(error["type"]))
    if words is not None:
        message, code = words(error, param)
        return InvalidRequest(message, param=param, code=code)
    expected = _EXPECTED.get(_base(error))
    if expected is not None:
        return _wrong_type(error, param, expected)
    return InvalidRequest(f"{_prefix(param)}{error['msg']}.", param=param, code="invalid_value")


def _wrong_type(error: Mapping[str, Any], param: str | None, expected: str) -> InvalidRequest:
    got = _kind(error.get("input"))
    message = f"Invalid type for '{param}': expected {expected}, but got {got} instead."
    if param is None:
        message = f"The body must be a JSON object, but it is {got}."
    return InvalidRequest(message, param=param, code="invalid_type")


def _base(error: Mapping[str, Any]) -> str:
    return str(error["type"]).removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")


def _format_types(types: Sequence[str]) -> str:
    """Return `, string, number or array`; like OpenAI, only the first type has an article."""
    *some, last = [name.partition(" ")[2] for name in types]
    return "".join(f", {name}" for name in some) + f" or {last}"


def _format_path(param_path: Sequence[str | int]) -> str | None:
    """Return a path as OpenAI writes it: `messages[0].content`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in param_path)
    return "".join(parts).removeprefix(".") or None


def _prefix(param: str | None) -> str:
    """Return the beginning of a message about a parameter; empty for the whole body."""
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


def _tag(error: Mapping[str, Any], _param: str | None) -> tuple[str, str]:
    expected = " and ".join(error["ctx"]["expected_tags"].rsplit(", ", 1))
    return f"Invalid value: '{clip(error['ctx']['tag'])}'. Supported values are: {expected}.", "invalid_value"


def _value(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
    return f"{_prefix(param)}{error['ctx']['error']}", "invalid_value"


def _pattern(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
    return f"Invalid '{param}': '{clip(error.get('input'))}' is not in the expected format.", "invalid_value"


def _bound(side: str, sign: str, limit: str) -> Callable[[Mapping[str, Any], str | None], tuple[str, str]]:
    def words(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
        edge, bound = "max" if side == "above" else "min", error["ctx"][limit]
        kind, shown = ("decimal", f"{bound:.15g}") if isinstance(bound, float) else ("integer", str(bound))
        message = (
            f"Invalid '{param}': {kind} {side} {edge}imum value. "
            f"Expected a value {sign} {shown}, but got {clip(error.get('input'))} instead."
        )
        return message, f"{kind}_{side}_{edge}_value"

    return words


def _length(side: str, limit: str) -> Callable[[Mapping[str, Any], str | None], tuple[str, str]]:
    def words(error: Mapping[str, Any], param: str | None) -> tuple[str, str]:
        noun, unit = _type_and_unit(error.get("input"))
        edge, size = ("at most", "max") if side == "above" else ("at least", "min")
        adjective = {"above": "too long", "below": "too short"}[side]
        message = f"{_prefix(param)}{noun} {adjective}. Expected {edge} {error['ctx'][limit]} {unit}."
        return message, f"{noun}_{side}_{size}_{'properties' if noun == 'object' else 'length'}"

    return words


_WORDS: dict[str, Callable[[Mapping[str, Any], str | None], tuple[str, str]]] = {
    "missing": _missing,
    "union_tag_not_found": _missing,
    "union_tag_invalid": _tag,
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
    """Return a value as quoted in a message, at most 64 characters long."""
    text = str(value) if not isinstance(value, int) or abs(value) < 10**_QUOTED else "a very large number"
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"


def _type_and_unit(value: object) -> tuple[str, str]:
    if isinstance(value, dict):
        return "object", "properties"
    return ("array", "items") if isinstance(value, list | tuple) else ("string", "characters")


def _kind(value: object) -> str:
    """Return a JSON value's type with its article; a query's values count as strings."""
    names: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a decimal number"),
        ((str, bytes), "a string"),
        (dict, "an object"),
        (list, "an array"),
    ]
    return next((name for kind, name in names if isinstance(value, kind)), "null")
