"""Chat completions that are kept, as OpenAI shows them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel


class CompletionObject(BaseModel):
    """As it was answered, with what is the client's to change."""

    model_config = {"extra": "allow"}

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    metadata: dict[str, str]


class CompletionDeleted(BaseModel):
    id: str
    object: Literal["chat.completion.deleted"] = "chat.completion.deleted"
    deleted: Literal[True] = True


class StoredMessage(BaseModel):
    """A message of the question. What came in parts is in `content_parts`, and `content` is null."""

    model_config = {"extra": "allow"}

    id: str
    content: str | None
    content_parts: list[Any] | None


def show_messages(completion_id: str, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Under ids of ours, by their places: the fields of a `StoredMessage` each."""
    return [_shown(f"{completion_id}-{n}", said) for n, said in enumerate(messages)]


def _shown(message_id: str, said: Mapping[str, Any]) -> dict[str, Any]:
    content = said.get("content")
    parts = content if isinstance(content, list) else None
    text = content if isinstance(content, str) else None
    return {"name": None, "refusal": None, **said, "id": message_id, "content": text, "content_parts": parts}
