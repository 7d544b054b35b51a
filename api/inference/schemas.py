"""Define items, responses, conversations and chat completions as OpenAI's API has them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel

from jobs.inference import compaction
from jobs.inference.item_ids import input_item_id
from jobs.requests.message_roles import INPUT_ROLES, wrong_role

_REFERENCE = "item_reference"


def is_reference(item: Mapping[str, Any]) -> bool:
    """Return whether an item of an input is a reference to a stored one. Its type may be left out."""
    kind, is_bare_reference = item.get("type"), item.keys() <= {"id", "type"}
    return kind == _REFERENCE or (kind is None and is_bare_reference and isinstance(item.get("id"), str))


def _check_item(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") is not None and not isinstance(item["type"], str):
        raise ValueError("An item's type is a string.")
    if item.get("type") == _REFERENCE and not isinstance(item.get("id"), str):
        raise ValueError("An item_reference has the id of an item.")
    role = item.get("role")
    if isinstance(role, str) and role not in INPUT_ROLES and (item.get("type") or "message") == "message":
        raise ValueError(wrong_role(role, INPUT_ROLES))
    if compaction.is_compaction(item):
        compaction.unpack(item.get(compaction.CONTENT))
    return item


def _check_message(item: dict[str, Any]) -> dict[str, Any]:
    message = (item.get("type") or "message") == "message" and not is_reference(item)
    if message and not (isinstance(item.get("role"), str) and isinstance(item.get("content"), str | list)):
        raise ValueError("A message has a role and a content.")
    return item


#: An item of a request. A message may leave out its type.
InputItem = Annotated[dict[str, Any], AfterValidator(_check_item)]
#: An item of a conversation, which is stored before an engine checks it.
NewItem = Annotated[InputItem, AfterValidator(_check_message)]


_INPUT, _OUTPUT = "input_text", "output_text"


class ResponseObject(BaseModel):
    """A stored response in its current state, with the fields of OpenAI's."""

    model_config = {"extra": "allow"}

    id: str
    object: Literal["response"] = "response"


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
    """An item of any of OpenAI's types."""

    model_config = {"extra": "allow"}

    id: str
    type: str


def show_items(response_id: str, items: Sequence[Any]) -> list[dict[str, Any]]:
    """Return each item with its id: the client's or the model's own where it has one."""
    return [
        {**show_item(item), "id": item["id"] if isinstance(item.get("id"), str) else input_item_id(response_id, n)}
        for n, item in enumerate(items)
    ]


#: Types of items that have a status at OpenAI, which an input may leave out.
_WITH_STATUS = frozenset({"function_call", "function_call_output"})


def show_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete item: an input may leave out the status, and the type and the parts of a message."""
    if (item.get("type") or "message") != "message":
        has_none = item.get("type") in _WITH_STATUS and item.get("status") is None
        return {**item, "status": "completed"} if has_none else dict(item)
    content = item.get("content")
    if isinstance(content, str):
        by_assistant = item.get("role") == "assistant"
        content = [
            {"type": _OUTPUT, "text": content, "annotations": []} if by_assistant else {"type": _INPUT, "text": content}
        ]
    return {"status": "completed", **item, "type": "message", "content": content}


def to_input(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item as engines are sent it: a message of the user's without id and status."""
    if item["type"] != "message" or item.get("role") == "assistant":
        return dict(item)
    return {name: value for name, value in item.items() if name not in ("id", "status")}


class CompletionObject(BaseModel):
    """A chat completion as it was answered, with the metadata that the client may change."""

    model_config = {"extra": "allow"}

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    metadata: dict[str, str]


class CompletionDeleted(BaseModel):
    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


class StoredMessage(BaseModel):
    """A message of the request. Content that came in parts is in `content_parts`, and `content` is null."""

    model_config = {"extra": "allow"}

    id: str
    content: str | None
    content_parts: list[Any] | None


def show_messages(completion_id: str, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the fields of a `StoredMessage` for each message, with ids made of its index."""
    return [_show_message(f"{completion_id}-{n}", message) for n, message in enumerate(messages)]


def _show_message(message_id: str, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    text = content if isinstance(content, str) else None
    return {"name": None, "refusal": None, **message, "id": message_id, "content": text, "content_parts": parts}
