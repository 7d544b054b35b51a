"""Read JSON bodies strictly: refuse what is ambiguous or cannot be stored, and repair nothing.

Refused with 400: bytes that are not UTF-8 or JSON (NaN and a byte order mark included), duplicate names, nesting beyond
100, numbers beyond a double, lone surrogates, NUL characters (PostgreSQL cannot store them).

    bytes ─▶ count values ─▶ decode ─▶ count items of each array ─▶ validate

A body that exceeds a limit is refused before the next step, so that no body occupies the interpreter for long. A large
body takes these steps in a thread.
"""

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, ClassVar, Final, TypeVar, get_args

import msgspec
from fastapi import APIRouter, Depends, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api import shares
from api.deps import admin_of, call_of, requires
from api.errors import RESPONSES, explain, too_long
from jobs.errors import InvalidRequest

_MAX_DEPTH = 100
_LARGE = 65_536  # bytes: a larger body is read in a thread
#: Items of an array or properties of an object. Arrays of numbers may be longer: they may be tokens of a long prompt.
_MAX_ITEMS = 10_000
#: Lower bounds of OpenAI, by path and field.
_BOUNDS: Final[Mapping[str, Mapping[str, int]]] = {
    "/v1/chat/completions": {"tools": 128},
    "/v1/embeddings": {"input": 2048},
}
#: Weight of all values: 4 a number, 18 a string, 30 an array or object. Numbers are cheap: they may be tokens.
_MAX_WEIGHT = 2_400_000
_LISTS = ("input", "messages", "prompt", "documents", "tools", "items", "files", "file_ids", "queries", "query")
_Lists = msgspec.defstruct("_Lists", [(name, msgspec.Raw, msgspec.Raw()) for name in _LISTS])
_CONTAINERS = frozenset({dict, list})
_BESIDE = ("default", "description", "title")  # keys of a schema that describe the field and not its values
B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")

#: A list in a body. Validation stops at the first invalid item, because a body may have a million of them.
Many = Annotated[list[T], Field(fail_fast=True)]


class Body(BaseModel):
    """Base of all JSON bodies: types are exact, and unknown fields are refused.

    Null stands for the default of a field whose default is not null, as if the field were missing.
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
        """Declare in the OpenAPI document that null is accepted where it stands for the default."""
        json_schema = handler(schema)
        properties = handler.resolve_ref_schema(json_schema)["properties"]
        for name in cls._defaulted:
            siblings = {key: properties[name].pop(key) for key in _BESIDE if key in properties[name]}
            properties[name] = {"anyOf": [properties[name], {"type": "null"}], **siblings}
        return json_schema

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict) or all(body.get(name, name) is not None for name in cls._defaulted):
            return body
        return {name: value for name, value in body.items() if value is not None or name not in cls._defaulted}

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown(cls, body: Any) -> Any:
        """Drop all unknown fields but the first, because only the first error is reported."""
        if not isinstance(body, dict) or len(body) <= len(cls.model_fields):
            return body
        unknown = next(name for name in body if name not in cls.model_fields)
        return {name: value for name, value in body.items() if name == unknown or name in cls.model_fields}

    def fields(self) -> dict[str, Any]:
        """Return the fields that the client sent, without defaults."""
        return self.model_dump(mode="json", exclude_unset=True)


def parse(raw: bytes) -> Any:
    """Return the value of a JSON text.

    Raises: InvalidRequest.
    """
    try:
        if _weight(raw) > _MAX_WEIGHT:
            raise _too_heavy(raw)
        msgspec.json.decode(raw)
        value = json.loads(raw, object_pairs_hook=_object)
    except RecursionError as error:
        raise _invalid_json("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise _invalid_json("not valid JSON") from error
    if b"\\u0000" in raw or raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH:
        _check(value, _MAX_DEPTH)
    return value


def _weight(raw: bytes) -> int:
    """Return the weight of a JSON text without decoding it, or any number above the maximum."""
    weight = _weigh(raw)
    if weight <= _MAX_WEIGHT:  # although this counted punctuation in strings too
        return weight
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    quotes = 7 * plain.count(b'"')
    return quotes if quotes > _MAX_WEIGHT else quotes + _weigh(b"".join(plain.split(b'"')[::2]))


def _weigh(text: bytes) -> int:
    return 4 * text.count(b",") + 7 * text.count(b'"') + 26 * (text.count(b"[") + text.count(b"{"))


def _too_heavy(raw: bytes) -> InvalidRequest:
    """Return the refusal of a body with too many values, which names its longest list.

    Raises: msgspec.MsgspecError.
    """
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
    """Check the lengths of the body and its fields; with `deep`, of all arrays and objects in it.

    Raises: InvalidRequest.
    """
    if not isinstance(body, dict):
        return
    for name, bound in _BOUNDS.get(path, {}).items():
        _check_length(body, body.get(name), bound)
    remaining: list[Any] = [body]
    while remaining:
        value = remaining.pop()
        _check_length(body, value, _MAX_ITEMS)
        if deep or value is body:
            members = value.values() if isinstance(value, dict) else value
            remaining += [member for member in members if type(member) in _CONTAINERS and member]


def _check_length(body: Any, value: Any, limit: int) -> None:
    if isinstance(value, dict | list) and len(value) > limit and not _only_numbers(value):
        raise too_long(value, _param_path(body, value) or (), limit)


def _param_path(value: Any, target: Any) -> tuple[str | int, ...] | None:
    """Return the path of the array or object `target` inside `value`; None if it is not there."""
    if value is target:
        return ()
    members = value.items() if isinstance(value, dict) else enumerate(value)
    inside = ((name, _param_path(member, target)) for name, member in members if type(member) in _CONTAINERS)
    return next(((name, *path) for name, path in inside if path is not None), None)


def _only_numbers(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int, float}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _invalid_json("an object that has the same name twice")
    return members


def _check(value: Any, depth: int) -> None:
    if depth < 0:
        raise _invalid_json("nested too deeply")
    if isinstance(value, str):
        if "\0" in value:
            raise _invalid_json("text with a NUL character")
        return
    if isinstance(value, dict):
        for name in value:
            _check(name, depth)
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, depth - 1)


def _invalid_json(what: str) -> InvalidRequest:
    message = "We could not use the JSON body of your request: it is "
    return InvalidRequest(f"{message}{what}.", code="invalid_json")


async def read_message(raw: bytes, path: str) -> Any:
    """Return the value of a message on a WebSocket, read as the body of a request to `path`.

    Raises: InvalidRequest.
    """
    many = _has_many(raw)

    def read() -> Any:
        value = parse(raw)
        check_lengths(value, path, deep=many)
        return value

    return await shares.run_reader(read) if many or len(raw) > _LARGE else read()


def validate_fields(model: type[B], fields: Mapping[str, Any], name: str = "") -> B:
    """Return the model of fields that FastAPI does not validate: of a message, or of the field `name` of a form.

    Raises: InvalidRequest.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        path = (name,) if name else ()
        faults = [{**fault, "loc": ("body", *path, *fault["loc"])} for fault in error.errors()]
        raise explain(faults, {name: fields} if name else fields) from error


def _has_many(raw: bytes) -> bool:
    """Return whether a body may have an array that is too long."""
    return raw.count(b",") >= _MAX_ITEMS


class _StrictRequest(Request):
    """A request whose JSON is read by `parse`; a large body is also validated in a thread."""

    field: Any = None  # the route's field, with which FastAPI would validate the body

    async def json(self) -> Any:
        raw = await self.body()
        many = _has_many(raw)
        if many or len(raw) > _LARGE:
            return await shares.run_reader(self._validate_body, raw, many)
        value = parse(raw)
        check_lengths(value, self.url.path, deep=False)
        return value

    def _validate_body(self, raw: bytes, many: bool) -> Any:
        """Return the model that FastAPI would make of the body; FastAPI then takes it as it is.

        Raises: InvalidRequest.
        """
        value = parse(raw)
        check_lengths(value, self.url.path, deep=many)
        if self.field is None or value is None:
            return value
        model, errors = self.field.validate(value, loc=("body",))
        if errors:
            raise explain(errors, value)
        return model


async def _await_body(request: Request) -> None:
    """Wait until the whole body has arrived.

    Raises: InvalidRequest, if the client leaves before.
    """
    try:
        await request.body()
    except ClientDisconnect as error:
        raise InvalidRequest("The client closed the connection before the end of the body.") from error


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `parse`, and whose plain function runs in a thread of the project."""

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
                if fields:  # hold no thread while the body arrives
                    await _await_body(given)
                async with usage.share.thread():
                    return await handler(given)
            async with usage.share.thread():
                pass
            return await handler(given)

        return strict


#: Only for the OpenAPI document: the middleware has already checked the key.
_KEY = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="A project's key: `nightmill keys create`.")


_ADMIN_KEY = HTTPBearer(
    auto_error=False, scheme_name="AdminKey", description="An admin key: `nightmill keys create --admin`."
)


def resource(tag: str, *, area: str, admin: bool = False) -> APIRouter:
    """Return the router of one resource, below /v1, for keys of projects; with `admin` for admin keys.

    `area` is that of the permissions that the keys must have, see `jobs.security.permissions`.
    """
    key, context = (_ADMIN_KEY, admin_of) if admin else (_KEY, call_of)
    needs = [Security(key), Depends(requires(area)), Depends(context)]
    return APIRouter(prefix="/v1", tags=[tag], route_class=StrictRoute, responses=RESPONSES, dependencies=needs)
