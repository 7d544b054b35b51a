"""How long a prompt is for an engine whose tokenizer is elsewhere: an estimate that is rather too high than too low.

English has four to five bytes a token, code about three, Chinese and Japanese three or fewer bytes for each of theirs.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from jobs.requests.endpoints import CHAT, RESPONSES

BYTES_A_TOKEN: Final = 3
_A_MESSAGE: Final = 4  # what a chat template puts around it
_PROMPT: Final = {
    CHAT: ("messages", "tools", "functions"),
    RESPONSES: ("input", "instructions", "tools"),
}


def estimate(url: str, body: Mapping[str, Any]) -> int:
    fields = [body.get(name) for name in _PROMPT.get(url, ())]
    messages = fields[0] if fields and isinstance(fields[0], list) else [None]
    return _A_MESSAGE * (1 + len(messages)) + sum(map(_size, fields)) // BYTES_A_TOKEN


def _size(value: Any) -> int:
    """In bytes: of a text, or of whatever names and values are in it."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, Mapping):
        return sum(_size(name) + _size(one) for name, one in value.items())
    if isinstance(value, list):
        return sum(map(_size, value))
    return 0 if value is None else len(msgspec.json.encode(value))
