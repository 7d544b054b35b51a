"""What parent and child say to each other over the sandbox's channel.

parent: Ask, with descriptors of the file and of the tokenizer  ─▶  child: Parsed | Refusal        any number of times
"""

import msgspec

from jobs.retrieval.documents import Chunk, Document
from workers.retrieval.parsing.contract import Code, Cutting, Limits, Refused, Strategy


class Ask(msgspec.Struct, frozen=True):
    filename: str
    max_tokens: int
    overlap: int
    strategy: Strategy
    limits: Limits


class Parsed(msgspec.Struct, frozen=True, tag=True):
    """`grown` is the address space that the child has taken since it started and not given back."""

    document: Document
    grown: int


class Refusal(msgspec.Struct, frozen=True, tag=True):
    code: Code
    message: str


Answer = Parsed | Refusal

encode = msgspec.msgpack.encode
decode_ask = msgspec.msgpack.Decoder(Ask).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def ask(filename: str, cutting: Cutting, limits: Limits) -> Ask:
    return Ask(filename, cutting.max_tokens, cutting.overlap, cutting.strategy, limits)


def largest_answer(limits: Limits) -> int:
    """In bytes: the text, and as much again for what is said about its chunks."""
    return 2 * limits.text_bytes + (1 << 20)


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
