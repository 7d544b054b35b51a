"""A refusal in place of an answer that the files do not support, in OpenAI's shapes: an object, a stream's events."""

from collections.abc import Mapping
from typing import Any, Final

from jobs.clock import now
from workers.engines.port import Request

WORDS: Final = "The files that were searched do not hold an answer to this."
_PART: Final = {"type": "refusal", "refusal": WORDS}
_NONE: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
#: What a response repeats of its request, and OpenAI's defaults.
_ECHOED: Final[Mapping[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}


def message(item: Mapping[str, Any]) -> dict[str, Any]:
    """The message as it is shown."""
    return {**item, "content": [dict(_PART)]}


def response(request: Request) -> dict[str, Any]:
    """To a request that no engine was asked: it has cost nothing."""
    name = request.request_id.rpartition("_")[2]
    item = {"type": "message", "id": f"msg_{name}", "status": "completed", "role": "assistant"}
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(now()),
        "status": "completed",
        "model": request.body.get("model"),
        "output": [message(item)],
        "error": None,
        "incomplete_details": None,
        **{field: request.body.get(field, default) for field, default in _ECHOED.items()},
        "usage": _NONE,
    }


def stream(request: Request) -> list[dict[str, Any]]:
    """The events of the same."""
    whole = response(request)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    return [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *events(whole["output"][0], 0),
        {"type": "response.completed", "response": whole},
    ]


def events(item: Mapping[str, Any], index: Any) -> list[dict[str, Any]]:
    """Of the message alone, with its place among the response's items."""
    place = {"item_id": item.get("id"), "output_index": index, "content_index": 0}
    begun = {**item, "status": "in_progress", "content": []}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": begun},
        {"type": "response.content_part.added", **place, "part": {"type": "refusal", "refusal": ""}},
        {"type": "response.refusal.delta", **place, "delta": WORDS},
        {"type": "response.refusal.done", **place, "refusal": WORDS},
        {"type": "response.content_part.done", **place, "part": dict(_PART)},
        {"type": "response.output_item.done", "output_index": index, "item": message(item)},
    ]
