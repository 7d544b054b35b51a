"""Write out a whole answer as the events of a stream, each text as one delta."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

Event = dict[str, Any]


def events_of_response(response: Mapping[str, Any]) -> list[Event]:
    """Return the events of a response from `response.created` to its end, numbered from 0; each text is one delta."""
    begun = {**response, "status": "in_progress", "output": []}
    begun |= dict.fromkeys(("usage", "error", "incomplete_details", "completed_at"))
    events: list[Event] = [{"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress")]
    for index, item in enumerate(response["output"]):
        events += _item(index, item)
    events.append({"type": f"response.{response.get('status') or 'completed'}", "response": dict(response)})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _item(index: int, item: Mapping[str, Any]) -> Iterator[Event]:
    position = {"output_index": index, "item_id": item.get("id")}
    between = _BETWEEN.get(item["type"])
    empty = {name: _EMPTY.get((item["type"], name), value) for name, value in item.items()}
    yield {"type": "response.output_item.added", "output_index": index, "item": {**empty, "status": "in_progress"}}
    if between:
        yield from between(position, item)
    yield {"type": "response.output_item.done", "output_index": index, "item": dict(item)}


def _search(position: Mapping[str, Any], _: Mapping[str, Any]) -> Iterator[Event]:
    for step in ("in_progress", "searching", "completed"):
        yield {"type": f"response.file_search_call.{step}", **position}


def _call(position: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[Event]:
    text = item["arguments"]
    yield {"type": "response.function_call_arguments.delta", **position, "delta": text}
    yield {"type": "response.function_call_arguments.done", **position, "arguments": text, "name": item["name"]}


def _reasoning(position: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[Event]:
    for number, part in enumerate(item.get("summary") or ()):
        at, text = {**position, "summary_index": number}, part.get("text") or ""
        yield {"type": "response.reasoning_summary_part.added", **at, "part": {**part, "text": ""}}
        yield {"type": "response.reasoning_summary_text.delta", **at, "delta": text}
        yield {"type": "response.reasoning_summary_text.done", **at, "text": text}
        yield {"type": "response.reasoning_summary_part.done", **at, "part": dict(part)}
    yield from _parts(position, item)


def _parts(position: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[Event]:
    for number, part in enumerate(item.get("content") or ()):
        yield from _part({**position, "content_index": number}, part)


def _part(position: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[Event]:
    name = "refusal" if part["type"] == "refusal" else "text"
    rest: Event = {"logprobs": []} if part["type"] == "output_text" else {}
    kind, text = f"response.{part['type']}", part.get(name) or ""
    empty = {field: [] if field in ("annotations", "logprobs") else value for field, value in part.items()}
    yield {"type": "response.content_part.added", **position, "part": {**empty, name: ""}}
    yield {"type": f"{kind}.delta", **position, "delta": text, **rest}
    for number, annotation in enumerate(part.get("annotations") or ()):
        yield {"type": f"{kind}.annotation.added", **position, "annotation_index": number, "annotation": annotation}
    yield {"type": f"{kind}.done", **position, name: text, **rest}
    yield {"type": "response.content_part.done", **position, "part": dict(part)}


_BETWEEN: Final = {"message": _parts, "reasoning": _reasoning, "function_call": _call, "file_search_call": _search}
#: Fields that an item does not have yet when it begins.
_EMPTY: Final[Mapping[tuple[str, str], Any]] = {
    ("message", "content"): [],
    ("reasoning", "content"): [],
    ("reasoning", "summary"): [],
    ("function_call", "arguments"): "",
    ("file_search_call", "results"): None,
}


def chat_chunks(answer: Mapping[str, Any], *, usage: bool) -> list[Event]:
    """Return a chat completion as one chunk; with `usage` a second chunk has the usage."""
    head: Event = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    chunk: Event = {**head, "choices": [_chunk_choice(choice) for choice in answer["choices"]]}
    if not usage:
        return [chunk]
    return [{**chunk, "usage": None}, {**head, "choices": [], "usage": answer.get("usage")}]


def _chunk_choice(choice: Mapping[str, Any]) -> Event:
    fields = {name: value for name, value in choice.items() if name != "message"}
    delta = dict(choice["message"])
    if delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
    return {**fields, "delta": delta}


def completion_chunks(answer: Mapping[str, Any], *, usage: bool) -> list[Event]:
    """Return a text completion as one chunk; with `usage` a second chunk has the usage."""
    head: Event = {name: value for name, value in answer.items() if name != "usage"}
    if not usage:
        return [head]
    return [{**head, "usage": None}, {**head, "choices": [], "usage": answer.get("usage")}]
