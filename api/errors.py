"""The error tree rendered in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

    NightmillError ─▶ its status, its code          validation ─▶ 400 with `param` and `code` (`explain`)
    unknown route, method ─▶ 404, 405               anything else ─▶ 500, without a word about why

Clients pick their exception by the status and obey `Retry-After` and `x-should-retry`; the SDK would repeat a 408, a
409 or a 507 by itself, so one that is not worth it says so.

Of pydantic's errors only the first is told, as OpenAI does. Values are quoted at most 64 characters long. Where a field
may have several types, pydantic reports what is wrong with each and adds the type's name to the path (`query.str`): the
answer says why the type that the value has is refused, and where the value is in the body, or lists all types.
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

from jobs.errors import Conflict, InvalidRequest, NightmillError, NotFound, ProjectFull, RequestTimeout

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong. `param` names the offending field, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


#: What any route may answer beside its success, for the OpenAPI document.
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
    """This URL does not take that method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "invalid_request_error"
    code = "method_not_allowed"


def respond(error: NightmillError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer that stands for an error."""
    given = dict(headers or {})
    if error.retry_after is not None:
        given["Retry-After"] = str(error.retry_after)
    if isinstance(error, Conflict | RequestTimeout | ProjectFull):
        given["x-should-retry"] = "true" if error.retryable else "false"
    return JSONResponse(describe(error), error.status, given)


def describe(error: NightmillError) -> dict[str, Any]:
    """The JSON of an error; also the last event of a stream that broke."""
    detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
    return ErrorBody(error=detail).model_dump()


def install(app: FastAPI) -> None:
    """Let this app answer errors in no other shape."""
    app.add_exception_handler(NightmillError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _known_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NightmillError)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request_failed", extra={"error_type": type(error).__name__, "status": error.status.value})
    return respond(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return respond(explain(error.errors(), error.body))


async def _http(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own errors; one of ours that was raised while the body was read is the cause of theirs."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, NightmillError):
        return respond(error.__cause__)
    where = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = _unsupported(request) or f"Invalid URL ({where})"
        return respond(NotFound(message, code="unknown_url"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return respond(MethodNotAllowed(f"Not allowed: {where}"), dict(error.headers or {}))
    return respond(InvalidRequest(str(error.detail), code="invalid_request"))


def _unsupported(request: Request) -> str | None:
    """Return the text for a resource that is not served at all, OpenAI's among them; None for any other URL."""
    paths = [route.path for route in request.app.routes if getattr(route, "include_in_schema", False)]
    served = [path for path in paths if path.startswith(_VERSION)]
    resource = _VERSION + request.url.path.removeprefix(_VERSION).partition("/")[0]
    if not request.url.path.startswith(_VERSION) or any(f"{path}/".startswith(f"{resource}/") for path in served):
        return None
    names = {path.removeprefix(_VERSION).partition("/{")[0] for path in served}
    roots = {name for name in names if not any(name.startswith(f"{other}/") for other in names)}
    return f"{clip(resource)} is not supported by Nightmill. Supported are: {', '.join(sorted(roots))}."


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """A mistake of ours. This handler runs outside our middleware, hence the header here."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    log.error("request_crashed", exc_info=error, extra={"request_id": request_id})
    return respond(NightmillError(), {"x-request-id": request_id})


_VERSION = "/v1/"
_QUOTED = 64
_LOOKED_AT = 100  # of pydantic's errors: a body may hold a million
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
    """The first of pydantic's errors as ours. `body` is what they speak of, where that is a body."""
    source, *param_path = errors[0]["loc"]
    if source != "body":
        return _render(errors[0], _joined(param_path))
    fault, types = _first([_Fault.of(error, body) for error in errors[:_LOOKED_AT]])
    if len(types) > 1:
        return _wrong_type(fault.error, fault.param, f"one of {types[0]}{_listed(types[1:])}")
    return _render(fault.error, fault.param)


def too_long(value: object, param_path: Sequence[str | int], limit: int) -> InvalidRequest:
    """Return the error for an array or an object at `place` of a body that has more than `limit` members."""
    return _render({"type": "too_long", "input": value, "ctx": {"max_length": limit}}, _joined(param_path))


@dataclass(frozen=True, slots=True)
class _Fault:
    """One of pydantic's errors. Of the parts of its place `real` are those that lead on in the body."""

    error: Mapping[str, Any]
    param_path: tuple[str | int, ...]
    real: tuple[bool, ...]

    @classmethod
    def of(cls, error: Mapping[str, Any], body: Any) -> "_Fault":
        param_path = error["loc"][1:]
        known, last = (param_path[:-1], (True,)) if error["type"] == "missing" and param_path else (param_path, ())
        real = _leading(known, body, lambda value: value is error["input"])
        if real is None:  # a key is wrong, or what is judged is not what was sent
            real = _leading(known, body, lambda _: True)
        return cls(error, param_path, (*(real or ()), *last))

    @property
    def param(self) -> str | None:
        """Where it is, in the body."""
        param = _joined([part for part, real in zip(self.param_path, self.real, strict=True) if real])
        if not self.error["type"].startswith("union_tag_"):
            return param
        name = self.error["ctx"]["discriminator"].strip("'")
        return name if param is None else f"{param}.{name}"

    @property
    def expected(self) -> str | None:
        """The type that the value should have, if it has another."""
        return _EXPECTED.get(_base(self.error))


def _leading(param_path: Sequence[str | int], value: Any, is_end: Callable[[Any], bool]) -> tuple[bool, ...] | None:
    """Which parts are steps from `value` to what `is_end`, as many as can be; None where none lead there."""
    if not param_path:
        return () if is_end(value) else None
    part, rest = param_path[0], param_path[1:]
    if part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value)):
        found = _leading(rest, value[part], is_end)
        if found is not None:
            return (True, *found)
    found = _leading(rest, value, is_end)
    return None if found is None else (False, *found)


def _first(faults: Sequence[_Fault]) -> tuple[_Fault, list[str]]:
    """The fault to tell, and the types that its value may have, where it has none of them."""
    fault, depth = faults[0], 0
    while depth < len(fault.param_path):
        if not fault.real[depth]:
            branches: dict[str | int, _Fault] = {}
            for one in faults:
                if one.param_path[:depth] == fault.param_path[:depth] and len(one.param_path) > depth:
                    branches.setdefault(one.param_path[depth], one)
            fitting = [one for one in branches.values() if len(one.param_path) > depth + 1 or one.expected is None]
            if not fitting:
                return fault, list(dict.fromkeys(str(one.expected) for one in branches.values()))
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


def _listed(types: Sequence[str]) -> str:
    """`, string, number or array`, as OpenAI says them: only the first has its article."""
    *some, last = [name.partition(" ")[2] for name in types]
    return "".join(f", {name}" for name in some) + f" or {last}"


def _joined(param_path: Sequence[str | int]) -> str | None:
    """As OpenAI writes it: `messages[0].content`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in param_path)
    return "".join(parts).removeprefix(".") or None


def _prefix(param: str | None) -> str:
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
        noun, unit = _measured(error.get("input"))
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
