"""Pack the summary of a compacted conversation, which clients send with their next request.

OpenAI encrypts it. Here it is only encoded as one word, because it is no secret: it is a summary of what the client has
sent. It is not stored.
"""

import base64
import binascii
from typing import Any, Final

ITEM: Final = "compaction"
CONTENT: Final = "encrypted_content"  # OpenAI's name
_MARK: Final = "nightmill-1."


def pack(summary: str) -> str:
    return _MARK + base64.urlsafe_b64encode(summary.encode()).decode()


def unpack(content: Any) -> str:
    """Return the packed summary. Raises ValueError for a text that `pack` has not made."""
    before, mark, rest = str(content).partition(_MARK)
    if before or not mark:
        raise ValueError(f"'{CONTENT}' is not a summary of this server. Only the server that made it can read it.")
    try:
        return base64.b64decode(rest, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"'{CONTENT}' is damaged.") from error


def is_compaction(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == ITEM
