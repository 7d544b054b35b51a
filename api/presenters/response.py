"""Responses as OpenAI shows them: the engine's answer under our id, and the items of an input."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

_INPUT, _OUTPUT = "input_text", "output_text"


class ResponseDeleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


def show_items(response_id: str, items: Sequence[Any]) -> list[dict[str, Any]]:
    """Each with its id: the client's or the model's own where it has one."""
    return [_item(f"{response_id.rpartition('_')[2]}{n:04x}", item) for n, item in enumerate(items)]


def _item(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind != "message":
        return {"id": f"item_{name}", **item}
    content = item.get("content")
    if isinstance(content, str):
        said = item.get("role") == "assistant"
        content = [{"type": _OUTPUT, "text": content, "annotations": []} if said else {"type": _INPUT, "text": content}]
    return {"id": f"msg_{name}", "status": "completed", **item, "type": "message", "content": content}
