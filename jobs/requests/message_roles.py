"""The roles that messages may have, as OpenAI names them.

The API checks the input of responses and conversations; `workers.engines.caps` checks each request before its engine.
"""

from collections.abc import Collection
from typing import Final

#: Roles in a response's input and in a conversation.
INPUT_ROLES: Final = ("user", "assistant", "system", "developer")
#: Roles in chat completions. `tool` is the role of a tool's result; `function` is its deprecated form.
CHAT_ROLES: Final = (*INPUT_ROLES, "tool", "function")
_SHOWN: Final = 64  # characters of an unsupported role, in the error text


def wrong_role(role: str, roles: Collection[str]) -> str:
    """Return the error text for an unsupported role."""
    return f"Invalid role: '{role[:_SHOWN]}'. Supported roles are: {', '.join(roles)}."
