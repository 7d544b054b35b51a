"""Read and write stored answers: each is one line, like a line of a batch with its answer.

{"custom_id", "method", "url", "body": the request, "response": the answer, or its state so far}

Responses have a module of their own; this one also has the functions of stored chat completions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

COMPLETION_PREFIX: Final = "chatcmpl-"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A stored answer. `request` is the body that an engine was sent, `response` the JSON that the client is shown."""

    request: dict[str, Any]
    response: dict[str, Any]

    @property
    def id(self) -> str:
        """Return the id that the client is shown."""
        return str(self.response["id"])


def encode(url: str, stored_answer: StoredAnswer) -> bytes:
    line = {"custom_id": stored_answer.id, "method": "POST", "url": url, "body": stored_answer.request}
    return msgspec.json.encode({**line, "response": stored_answer.response}) + b"\n"


def decode(line: bytes) -> StoredAnswer:
    record = msgspec.json.decode(line)
    return StoredAnswer(record["body"], record["response"])


def completion_path(completion_id: str) -> str:
    """Return the path of a chat completion in storage."""
    return f"completions/{completion_id}"


def is_completion(answer: Any) -> bool:
    """Return whether an engine's answer is a chat completion: status 200 does not guarantee it."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices)
    )


def to_completion(answer: Mapping[str, Any], completion_id: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return an engine's answer as the chat completion that is stored."""
    return {**answer, "id": completion_id, "object": "chat.completion", "metadata": dict(metadata or {})}
