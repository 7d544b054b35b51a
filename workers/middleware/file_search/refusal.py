"""The refusal that replaces an unsupported answer, in the shapes of OpenAI: an object, and the events of a stream."""

from collections.abc import Mapping
from typing import Any, Final

from jobs.inference.complete_answers import new_response
from workers.engines.port import Request

REFUSAL: Final = "The files that were searched do not hold an answer to this."
_PART: Final = {"type": "refusal", "refusal": REFUSAL}
_NONE: Final = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def refusal_message(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message with the refusal as its content."""
    return {**item, "content": [dict(_PART)]}


def refusal_response(request: Request) -> dict[str, Any]:
    """Return the response of a request that was refused before any engine was asked: it has no usage."""
    name = request.request_id.rpartition("_")[2]
    item = {"type": "message", "id": f"msg_{name}", "status": "completed", "role": "assistant"}
    return {
        **new_response(request.body, "completed"),
        "id": f"resp_{name}",
        "output": [refusal_message(item)],
        "usage": _NONE,
    }


def refusal_stream(request: Request) -> list[dict[str, Any]]:
    """Return the events of such a response."""
    whole = refusal_response(request)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    return [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *refusal_events(whole["output"][0], 0),
        {"type": "response.completed", "response": whole},
    ]


def refusal_events(item: Mapping[str, Any], index: Any) -> list[dict[str, Any]]:
    """Return the events of the refused message alone; `index` is its index in the output."""
    position = {"item_id": item.get("id"), "output_index": index, "content_index": 0}
    begun = {**item, "status": "in_progress", "content": []}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": begun},
        {"type": "response.content_part.added", **position, "part": {"type": "refusal", "refusal": ""}},
        {"type": "response.refusal.delta", **position, "delta": REFUSAL},
        {"type": "response.refusal.done", **position, "refusal": REFUSAL},
        {"type": "response.content_part.done", **position, "part": dict(_PART)},
        {"type": "response.output_item.done", "output_index": index, "item": refusal_message(item)},
    ]
