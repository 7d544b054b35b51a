"""What parent and child say to each other: a length of four bytes, then msgpack.

child:  Ready
parent: Ask  ─▶  child: Parsed | Refusal        as often as the parent likes
"""

import struct
from typing import BinaryIO, Final

import msgspec

from jobs.documents import Chunk, Document
from workers.parsing.terms import Code, Cutting, Limits, Refused, Strategy

HEADER: Final = struct.Struct(">I")
LARGEST_ASK: Final = 1 << 20


class Ask(msgspec.Struct, frozen=True):
    path: str
    filename: str
    tokenizer: str
    max_tokens: int
    overlap: int
    strategy: Strategy
    limits: Limits


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The child has started. `alone`: it has no network."""

    alone: bool = False


class Parsed(msgspec.Struct, frozen=True, tag=True):
    """`grown` is the address space that the child has taken since it started and not given back."""

    document: Document
    grown: int


class Refusal(msgspec.Struct, frozen=True, tag=True):
    code: Code
    message: str


Answer = Ready | Parsed | Refusal

encode = msgspec.msgpack.encode
decode_ask = msgspec.msgpack.Decoder(Ask).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def ask(path: str, filename: str, cutting: Cutting, limits: Limits) -> Ask:
    tokenizer = str(cutting.tokenizer)
    return Ask(path, filename, tokenizer, cutting.max_tokens, cutting.overlap, cutting.strategy, limits)


def largest_answer(limits: Limits) -> int:
    """In bytes: the text, and as much again for what is said about its chunks."""
    return 2 * limits.text_bytes + (1 << 20)


def write(pipe: BinaryIO, message: bytes) -> None:
    pipe.write(HEADER.pack(len(message)) + message)
    pipe.flush()


def read(pipe: BinaryIO) -> bytes | None:
    """None when the other side is gone."""
    header = pipe.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    message = pipe.read(min(length, LARGEST_ASK))
    return message if len(message) == length else None


def check(document: Document, limits: Limits) -> Document:
    """What a child says is not believed: it has read a hostile file."""
    if len(document.text) > limits.text_bytes or not all(
        _are_in(document.text, pieces, limits) for pieces in (document.chunks, document.sentences)
    ):
        raise nonsense()
    return document


def _are_in(text: str, pieces: tuple[Chunk, ...], limits: Limits) -> bool:
    good, before = len(pieces) <= len(text), 0
    for piece in pieces:
        good = good and before <= piece.start < piece.end <= len(text) and 0 <= piece.tokens <= limits.tokens
        before = piece.start
    return good


def nonsense() -> Refused:
    return Refused("server_error", "The parser gave an answer that makes no sense.")
