"""The JSON schema that a request wants its answer to match."""

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.endpoints import CHAT, RESPONSES

MAX_SCHEMA_BYTES: Final = 128 * 1024  # of all schemas of a request; OpenAI allows 120,000 characters of names


def param_of(url: str) -> str:
    """Return the field of a request that has the schema of its answer."""
    return "text.format.schema" if url == RESPONSES else "response_format"


def schema_of(url: str, body: Mapping[str, Any]) -> bytes | None:
    """Return the schema as JSON; None if the answer may be anything.

    Raises: InvalidRequest.
    """
    form = form_of(url, body)
    if not asks_for_schema(form):
        return None
    wrapper = form.get("json_schema") if url == CHAT else form
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else wrapper
    if schema is None and isinstance(wrapper, dict) and url == CHAT:
        return None  # OpenAI allows a json_schema without a schema in chats
    if not isinstance(schema, dict | bool):
        raise invalid(url, "it is not an object.")
    raw = msgspec.json.encode(schema)
    if len(raw) > MAX_SCHEMA_BYTES:
        raise invalid(url, f"it has more than {MAX_SCHEMA_BYTES} bytes.")
    return raw


def form_of(url: str, body: Mapping[str, Any]) -> Any:
    """Return what a request says of the form of its answer."""
    if url == CHAT:
        return body.get("response_format")
    text = body.get("text") if url == RESPONSES else None
    return text.get("format") if isinstance(text, dict) else None


def asks_for_schema(form: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether the answer has to match a schema."""
    return isinstance(form, dict) and form.get("type") == "json_schema"


def invalid(url: str, why: str) -> InvalidRequest:
    """Return the refusal of a request whose schema is none."""
    return InvalidRequest(f"Invalid schema of the answer: {why}", param=param_of(url), code="invalid_json_schema")
