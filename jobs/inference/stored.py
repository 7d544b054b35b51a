"""An answer that is kept, as one line in storage: what a line of a batch has, and what came of it.

{"custom_id", "method", "url", "body": the question, "response": the answer, or what is known of it so far}
"""

from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Kept:
    """`question` is the body that an engine is asked, `response` the JSON that a client is shown."""

    question: dict[str, Any]
    response: dict[str, Any]


def encode(url: str, kept: Kept) -> bytes:
    line = {"custom_id": kept.response["id"], "method": "POST", "url": url, "body": kept.question}
    return msgspec.json.encode({**line, "response": kept.response}) + b"\n"


def decode(line: bytes) -> Kept:
    found = msgspec.json.decode(line)
    return Kept(found["body"], found["response"])
