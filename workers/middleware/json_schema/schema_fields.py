"""Where a request says what schema its answer has, and where the answer has what is to be of it."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from jobs.errors import InvalidRequest
from jobs.requests.endpoints import CHAT, RESPONSES
from workers.engines.caps import MOST_SCHEMA_BYTES

#: What a message has that is no JSON, nor meant to be.
NO_JSON: Final = ("tool_calls", "function_call", "refusal")
_KIND: Final = "json_schema"


def param_of(url: str) -> str:
    return "text.format.schema" if url == RESPONSES else "response_format"


def schema_of(url: str, body: Mapping[str, Any]) -> bytes | None:
    """The schema as JSON; None where the answer may be anything. Raises InvalidRequest."""
    text = body.get("text")
    place = text.get("format") if url == RESPONSES and isinstance(text, dict) else None
    if url == CHAT:
        place = body.get("response_format")
    if not isinstance(place, dict) or place.get("type") != _KIND:
        return None
    told = place.get(_KIND) if url == CHAT else place
    schema = told.get("schema") if isinstance(told, dict) else told
    if schema is None and isinstance(told, dict) and url == CHAT:
        return None  # OpenAI's chats may name a schema without having one
    if not isinstance(schema, dict | bool):
        raise invalid(url, "it is no object.")
    raw = msgspec.json.encode(schema)
    if len(raw) > MOST_SCHEMA_BYTES:
        raise invalid(url, f"it has more than {MOST_SCHEMA_BYTES} bytes.")
    return raw


def invalid(url: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid schema of the answer: {why}", param=param_of(url), code="invalid_json_schema")


def texts(url: str, body: Any) -> list[str]:
    """What is to be JSON. Nothing of it is that was cut off, refused, filtered, or is a call of a tool."""
    if not isinstance(body, dict):
        return []
    if url == CHAT:
        choices = body.get("choices")
        found = [_of_choice(one) for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []
        return [text for text in found if text is not None]
    return _of_response(body)


def _of_choice(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    if choice.get("finish_reason") != "stop" or not isinstance(message, dict):
        return None
    if any(message.get(name) for name in NO_JSON):
        return None
    return str(message.get("content") or "")


def _of_response(body: Mapping[str, Any]) -> list[str]:
    output = body.get("output")
    if body.get("status") != "completed" or not isinstance(output, list):
        return []
    items = [item for item in output if isinstance(item, dict)]
    messages = [item for item in items if item.get("type") == "message"]
    if not messages and any(str(item.get("type")).endswith("_call") for item in items):
        return []
    contents = [item["content"] for item in messages if isinstance(item.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict)]
    if any(part.get("type") == "refusal" for part in parts):
        return []
    return ["".join(str(part.get("text") or "") for part in parts if part.get("type") == "output_text")]
