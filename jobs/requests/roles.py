"""The roles of messages at OpenAI."""

from collections.abc import Collection
from typing import Final

#: Roles in a response's input and in a conversation.
INPUT_ROLES: Final = ("user", "assistant", "system", "developer")
CHAT_ROLES: Final = (*INPUT_ROLES, "tool", "function")
_SHOWN: Final = 64  # characters of a role


def wrong_role(role: str, roles: Collection[str]) -> str:
    """Return the error text for an unsupported role."""
    return f"Invalid role: '{role[:_SHOWN]}'. Supported roles are: {', '.join(roles)}."
