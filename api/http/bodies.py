"""JSON bodies, read strictly: what is ambiguous or cannot be stored is refused, never repaired.

Refused with 400: what is not UTF-8 or JSON (NaN and a byte order mark included), a name given twice, nesting beyond
100, numbers no double holds, lone surrogates, NUL characters (PostgreSQL has no place for them).

    bytes ─▶ values are counted ─▶ decoded ─▶ items of each array are counted ─▶ validated

What is too much is refused before the next step, so no body occupies the interpreter for long. A large body takes these
steps in a thread.
"""

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, ClassVar, Final, TypeVar, get_args

import msgspec
from fastapi import APIRouter, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api import shares
from api.errors import RESPONSES, explain, too_long
from jobs.errors import InvalidRequest

_MAX_DEPTH = 100
_LARGE = 65_536  # bytes: a larger body is read in a thread
#: Items of an array, or properties of an object, but for arrays of numbers: these may be the tokens of a long prompt.
_MAX_ITEMS = 10_000
#: Lower bounds of OpenAI, by path and field.
_BOUNDS: Final[Mapping[str, Mapping[str, int]]] = {
    "/v1/chat/completions": {"tools": 128},
    "/v1/embeddings": {"input": 2048},
}
#: Values of a body by weight: 4 a number, 18 a string, 30 an array or an object. Numbers are cheap: tokens of prompts.
_MAX_WEIGHT = 2_400_000
_LISTS = ("input", "messages", "prompt", "documents", "tools", "items", "files", "file_ids", "queries", "query")
_Lists = msgspec.defstruct("_Lists", [(name, msgspec.Raw, msgspec.Raw()) for name in _LISTS])
_CONTAINERS = frozenset({dict, list})
_BESIDE = ("default", "description", "title")  # of a schema: what describes a field and not its values
T = TypeVar("T")

#: A list of a body: of what is wrong with a million items the first fault is told, and no other is looked for.
Many = Annotated[list[T], Field(fail_fast=True)]


class Body(BaseModel):
    """The base of every JSON body: its types are exact and unknown fields are refused.

    A null stands for the default of a field that has one other than null, as if the field were not there.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    _defaulted: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        cls._defaulted = frozenset(
            name
            for name, field in cls.model_fields.items()
            if not field.is_required() and type(None) not in get_args(field.annotation)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say in the OpenAPI document that null is taken where it stands for the default."""
        found = handler(schema)
        properties = handler.resolve_ref_schema(found)["properties"]
        for name in cls._defaulted:
            siblings = {key: properties[name].pop(key) for key in _BESIDE if key in properties[name]}
            properties[name] = {"anyOf": [properties[name], {"type": "null"}], **siblings}
        return found

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict) or all(body.get(name, name) is not None for name in cls._defaulted):
            return body
        return {name: value for name, value in body.items() if value is not None or name not in cls._defaulted}

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
        if _weight(raw) > _MAX_WEIGHT:
            raise _too_heavy(raw)
        msgspec.json.decode(raw)
        value = json.loads(raw, object_pairs_hook=_object)
    except RecursionError as error:
        raise _refused("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise _refused("not valid JSON") from error
    if b"\\u0000" in raw or raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH:
        _check(value, _MAX_DEPTH)
    return value


def _weight(raw: bytes) -> int:
    """Return how much the values of a JSON text weigh, or more than the maximum; nothing is decoded for that."""
    weight = _weigh(raw)
    if weight <= _MAX_WEIGHT:  # although the punctuation in strings was counted too
        return weight
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    quotes = 7 * plain.count(b'"')
    return quotes if quotes > _MAX_WEIGHT else quotes + _weigh(b"".join(plain.split(b'"')[::2]))


def _weigh(text: bytes) -> int:
    return 4 * text.count(b",") + 7 * text.count(b'"') + 26 * (text.count(b"[") + text.count(b"{"))


def _too_heavy(raw: bytes) -> InvalidRequest:
    """The refusal of a body with too many values, which names the longest list. Raises msgspec.MsgspecError."""
    lists = msgspec.json.decode(raw, type=_Lists)
    longest = max(_LISTS, key=lambda name: len(bytes(getattr(lists, name))))
    param = longest if bytes(getattr(lists, longest)) else None
    return InvalidRequest(
        f"Too many values in {param or 'the body'}: a body holds at most "
        f"{_MAX_WEIGHT // 30} arrays and objects, {_MAX_WEIGHT // 18} strings or {_MAX_WEIGHT // 4} numbers.",
        param=param,
        code="too_many_values",
    )


def check_lengths(body: Any, path: str, *, deep: bool) -> None:
    """Raise InvalidRequest for an array or an object that is too long: the body and its fields, with `deep` all."""
    if not isinstance(body, dict):
        return
    for name, bound in _BOUNDS.get(path, {}).items():
        _check_length(body, body.get(name), bound)
    left: list[Any] = [body]
    while left:
        value = left.pop()
        _check_length(body, value, _MAX_ITEMS)
        if deep or value is body:
            members = value.values() if isinstance(value, dict) else value
            left += [member for member in members if type(member) in _CONTAINERS and member]


def _check_length(body: Any, value: Any, limit: int) -> None:
    if isinstance(value, dict | list) and len(value) > limit and not _only_numbers(value):
        raise too_long(value, _param_path(body, value) or (), limit)


def _param_path(value: Any, wanted: Any) -> tuple[str | int, ...] | None:
    """Where an array or an object is in another."""
    if value is wanted:
        return ()
    members = value.items() if isinstance(value, dict) else enumerate(value)
    inside = ((name, _param_path(member, wanted)) for name, member in members if type(member) in _CONTAINERS)
    return next(((name, *path) for name, path in inside if path is not None), None)


def _only_numbers(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int, float}


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
    """A request whose JSON is read by `parse`; that of a large body is validated too, in a thread."""

    field: Any = None  # of the route: what FastAPI would validate the body with

    async def json(self) -> Any:
        raw = await self.body()
        many = raw.count(b",") >= _MAX_ITEMS
        if many or len(raw) > _LARGE:
            return await shares.run_reader(self._validated, raw, many)
        value = parse(raw)
        check_lengths(value, self.url.path, deep=False)
        return value

    def _validated(self, raw: bytes, many: bool) -> Any:
        """The model that FastAPI would make of the body; it takes this one as it is. Raises InvalidRequest."""
        value = parse(raw)
        check_lengths(value, self.url.path, deep=many)
        if self.field is None or value is None:
            return value
        model, errors = self.field.validate(value, loc=("body",))
        if errors:
            raise explain(errors, value)
        return model


async def _arrived(request: Request) -> None:
    """Wait until the whole body is there. Raises InvalidRequest when the client leaves before that."""
    try:
        await request.body()
    except ClientDisconnect as error:
        raise InvalidRequest("The client closed the connection before the end of the body.") from error


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `parse`, and whose plain function runs in a thread of its project."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        fields = self.dependant.body_params

        async def strict(request: Request) -> Response:
            given = _StrictRequest(request.scope, request.receive)
            given.field = fields[0] if len(fields) == 1 else None
            usage = shares.current.get()
            if usage is None:
                return await handler(given)
            if not self.dependant.is_coroutine_callable:
                if fields:  # a thread is not held while it arrives
                    await _arrived(given)
                async with usage.share.thread():
                    return await handler(given)
            async with usage.share.thread():
                pass
            return await handler(given)

        return strict


#: For the OpenAPI document alone: the middleware has checked the key before.
_KEY = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="A project's key: `nightmill keys create`.")


def resource(tag: str) -> APIRouter:
    """The router of one resource, below /v1."""
    return APIRouter(
        prefix="/v1", tags=[tag], route_class=StrictRoute, responses=RESPONSES, dependencies=[Security(_KEY)]
    )
