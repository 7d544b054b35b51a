"""What the checker and its child say to each other over the sandbox's channel.

parent: Ask  ─▶  child: Judged | Bad        as often as the parent likes
"""

from typing import Final

import msgspec

from workers.sandbox.channel import LARGEST

#: Of the texts, with room for the schema and the rest.
MOST_TEXT: Final = LARGEST - (256 << 10)
LARGEST_ANSWER: Final = LARGEST


class CheckRequest(msgspec.Struct, frozen=True):
    """Without texts it is asked only whether the schema is one."""

    schema: bytes
    texts: list[str]


class CheckResult(msgspec.Struct, frozen=True, tag=True):
    """What is wrong with each text; None is nothing."""

    faults: list[str | None]


class InvalidSchema(msgspec.Struct, frozen=True, tag=True):
    """The schema is none."""

    why: str


encode = msgspec.msgpack.encode
decode_request = msgspec.msgpack.Decoder(CheckRequest).decode
_decode = msgspec.msgpack.Decoder(CheckResult | InvalidSchema).decode


def decode_answer(message: bytes) -> CheckResult | InvalidSchema:
    found: CheckResult | InvalidSchema = _decode(message)
    return found
