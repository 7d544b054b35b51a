"""The error tree rendered in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

    NightmillError ─▶ its status, its code          validation ─▶ 400 (`api.error_messages`)
    unknown route, method ─▶ 404, 405               anything else ─▶ 500, without a word about why

Clients pick their exception by the status and obey `Retry-After` and `x-should-retry`; the SDK would repeat a 408, a
409 or a 507 by itself, so one that is not worth it says so.
"""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from api.error_messages import explain
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
    app.add_exception_handler(NightmillError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(_request: Request, error: Exception) -> JSONResponse:
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
        return respond(NotFound(f"Invalid URL ({where})", code="unknown_url"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return respond(MethodNotAllowed(f"Not allowed: {where}"), dict(error.headers or {}))
    return respond(InvalidRequest(str(error.detail), code="invalid_request"))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """A mistake of ours. This handler runs outside our middleware, hence the header here."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    log.error("request_crashed", exc_info=error, extra={"request_id": request_id})
    return respond(NightmillError(), {"x-request-id": request_id})
