"""JSON bodies, read strictly: what is ambiguous or cannot be stored is refused, never repaired.

Refused with 400: what is not UTF-8 or JSON (NaN and a byte order mark included), a name given twice, nesting beyond
100, numbers no double holds, lone surrogates, NUL characters (PostgreSQL has no place for them).
"""

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from api import shares
from jobs.errors import InvalidRequest

_MAX_DEPTH = 100
_LARGE = 65_536  # bytes: what is read at once; beside more of them other clients are heard
T = TypeVar("T")

#: A list of a body: of what is wrong with a million items the first fault is told, and no other is looked for.
Many = Annotated[list[T], Field(fail_fast=True)]


class Body(BaseModel):
    """The base of every JSON body: its types are exact and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, body: Any) -> Any:
        """Only the first fault is told: of names that nobody knows, pydantic would find each."""
        if not isinstance(body, dict) or len(body) <= len(cls.model_fields):
            return body
        unknown = next(name for name in body if name not in cls.model_fields)
        return {name: value for name, value in body.items() if name == unknown or name in cls.model_fields}

    def fields(self) -> dict[str, Any]:
        """What the client sent, and nothing filled in."""
        return self.model_dump(mode="json", exclude_unset=True)


def parse(raw: bytes) -> Any:
    """The value of a JSON text. Raises InvalidRequest."""
    try:
        msgspec.json.decode(raw)
        value = json.loads(raw, object_pairs_hook=_object)
    except RecursionError as error:
        raise _refused("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise _refused("not valid JSON") from error
    if b"\\u0000" in raw or raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH:
        _check(value, _MAX_DEPTH)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _refused("an object that has the same name twice")
    return found


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise _refused("nested too deeply")
    if isinstance(value, str):
        if "\0" in value:
            raise _refused("text with a NUL character")
        return
    if isinstance(value, dict):
        for name in value:
            _check(name, depth)
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, depth - 1)


def _refused(what: str) -> InvalidRequest:
    message = "We could not use the JSON body of your request: it is "
    return InvalidRequest(f"{message}{what}.", code="invalid_json")


class _StrictRequest(Request):
    async def json(self) -> Any:
        raw = await self.body()
        return parse(raw) if len(raw) <= _LARGE else await shares.run_reader(parse, raw)


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `parse`, and whose plain function runs in a thread of its project."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        fields = self.dependant.body_params

        async def strict(request: Request) -> Response:
            given = _StrictRequest(request.scope, request.receive)
            share = shares.current.get()
            if share is None:
                return await handler(given)
            if not self.dependant.is_coroutine_callable:
                if fields:
                    await given.body()  # a thread is not held while it arrives
                async with share.thread():
                    return await handler(given)
            async with share.thread():
                pass
            return await handler(given)

        return strict
