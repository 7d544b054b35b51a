"""Read and write stored answers: each is one line, like a line of a batch with its answer.

{"custom_id", "method", "url", "body": the request, "response": the answer, or its state so far}

Responses have a module of their own; this one also has the functions of stored chat completions.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from jobs.ids import LENGTH

COMPLETION_PREFIX: Final = "chatcmpl-"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A stored answer. `request` is the body that an engine was sent, `response` the JSON that the client is shown.

    The input of the request begins with `prompt_items` messages of a prompt, which the next turn does not repeat.
    """

    request: dict[str, Any]
    response: dict[str, Any]
    prompt_items: int = 0

    @property
    def id(self) -> str:
        """Return the id that the client is shown."""
        return str(self.response["id"])


def encode(url: str, stored_answer: StoredAnswer) -> bytes:
    line = {"custom_id": stored_answer.id, "method": "POST", "url": url, "body": stored_answer.request}
    own = {"prompt_items": stored_answer.prompt_items} if stored_answer.prompt_items else {}
    return msgspec.json.encode({**line, "response": stored_answer.response, **own}) + b"\n"


def decode(line: bytes) -> StoredAnswer:
    record = msgspec.json.decode(line)
    return StoredAnswer(record["body"], record["response"], record.get("prompt_items", 0))


def completion_path(completion_id: str) -> str:
    """Return the path of a chat completion in storage."""
    return f"completions/{completion_id}"


def id_of_import(project_id: str, foreign_id: str) -> str:
    """Return the id here of a chat completion that was made elsewhere: one for each project and id there."""
    digest = hashlib.sha256(f"{project_id}\n{foreign_id}".encode()).hexdigest()
    return f"{COMPLETION_PREFIX}{digest[:LENGTH]}"


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
