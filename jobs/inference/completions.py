"""Chat completions that are kept (`store`): where one lies, and what of it is ours."""

from collections.abc import Mapping
from typing import Any, Final

PREFIX: Final = "chatcmpl-"


def path(completion_id: str) -> str:
    return f"completions/{completion_id}"


def sound(answer: Any) -> bool:
    """Whether an engine's answer is a chat completion: what else comes with status 200 is none."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices)
    )


def ours(answer: Mapping[str, Any], completion_id: str, labels: Mapping[str, Any] | None) -> dict[str, Any]:
    """An engine's answer as the completion that is kept; `labels` are OpenAI's `metadata`."""
    return {**answer, "id": completion_id, "object": "chat.completion", "metadata": dict(labels or {})}
