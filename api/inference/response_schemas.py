"""Responses and conversations as OpenAI shows them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

_INPUT, _OUTPUT = "input_text", "output_text"


class ResponseDeleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ConversationObject(BaseModel):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


class ConversationDeleted(BaseModel):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True


class ItemObject(BaseModel):
    """Any of OpenAI's items."""

    model_config = {"extra": "allow"}

    id: str
    type: str


def show_items(response_id: str, items: Sequence[Any]) -> list[dict[str, Any]]:
    """Each with its id: the client's or the model's own where it has one."""
    name = response_id.rpartition("_")[2]
    return [
        {**show_item(item), "id": item["id"] if isinstance(item.get("id"), str) else f"item_{name}{n:04x}"}
        for n, item in enumerate(items)
    ]


def show_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item written out: a message's type, status and parts may be left out in an input."""
    if (item.get("type") or "message") != "message":
        return dict(item)
    content = item.get("content")
    if isinstance(content, str):
        said = item.get("role") == "assistant"
        content = [{"type": _OUTPUT, "text": content, "annotations": []} if said else {"type": _INPUT, "text": content}]
    return {"status": "completed", **item, "type": "message", "content": content}


def as_input(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as an engine is asked: a message of the user's has neither id nor status there."""
    if item["type"] != "message" or item.get("role") == "assistant":
        return dict(item)
    return {name: value for name, value in item.items() if name not in ("id", "status")}
