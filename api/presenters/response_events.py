"""A finished response written out as the events that a stream of it has."""

from collections.abc import Iterator, Mapping
from typing import Any

Event = dict[str, Any]


def written_out(response: Mapping[str, Any]) -> list[Event]:
    """From `response.created` to its end, numbered from 0; each text in one piece."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "error": None}
    told: list[Event] = [{"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress")]
    for index, item in enumerate(response["output"]):
        told += _item(index, item)
    told.append({"type": f"response.{response.get('status') or 'completed'}", "response": dict(response)})
    return [{**event, "sequence_number": number} for number, event in enumerate(told)]


def _item(index: int, item: Mapping[str, Any]) -> Iterator[Event]:
    place = {"output_index": index, "item_id": item.get("id")}
    empty = {**item, "status": "in_progress"}
    if item["type"] == "message":
        empty["content"] = []
    elif item["type"] == "function_call":
        empty["arguments"] = ""
    yield {"type": "response.output_item.added", "output_index": index, "item": empty}
    if item["type"] == "message":
        for number, part in enumerate(item["content"]):
            yield from _part({**place, "content_index": number}, part)
    elif item["type"] == "function_call":
        text = item["arguments"]
        yield {"type": "response.function_call_arguments.delta", **place, "delta": text}
        yield {"type": "response.function_call_arguments.done", **place, "arguments": text, "name": item["name"]}
    yield {"type": "response.output_item.done", "output_index": index, "item": dict(item)}


def _part(place: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[Event]:
    refused = part["type"] == "refusal"
    name = "refusal" if refused else "text"
    rest: Event = {} if refused else {"logprobs": []}
    kind = "response.refusal" if refused else "response.output_text"
    text = part.get(name) or ""
    yield {"type": "response.content_part.added", **place, "part": {**part, name: ""}}
    yield {"type": f"{kind}.delta", **place, "delta": text, **rest}
    yield {"type": f"{kind}.done", **place, name: text, **rest}
    yield {"type": "response.content_part.done", **place, "part": dict(part)}
