"""The messages of the checker and its child over the sandbox's channel.

parent: CheckRequest  ─▶  child: CheckResult | InvalidSchema        any number of times
"""

from typing import Final

import msgspec

from workers.sandbox.channel import MAX_BYTES

#: Bytes of the texts of a request; the rest of the message is for the schema.
MAX_TEXT: Final = MAX_BYTES - (256 << 10)
MAX_ANSWER: Final = MAX_BYTES


class CheckRequest(msgspec.Struct, frozen=True):
    """A schema, and texts to check against it; without texts only the schema is checked."""

    schema: bytes
    texts: list[str]


class CheckResult(msgspec.Struct, frozen=True, tag=True):
    """The error of each text; None if it matches."""

    faults: list[str | None]


class InvalidSchema(msgspec.Struct, frozen=True, tag=True):
    """The error of a schema that is none."""

    why: str


encode = msgspec.msgpack.encode
decode_request = msgspec.msgpack.Decoder(CheckRequest).decode
_decode = msgspec.msgpack.Decoder(CheckResult | InvalidSchema).decode


def decode_answer(message: bytes) -> CheckResult | InvalidSchema:
    answer: CheckResult | InvalidSchema = _decode(message)
    return answer
