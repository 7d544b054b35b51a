"""The options, limits, errors and messages of parsing, for the parent and the child.

parent: Ask, with descriptors of the file and of the tokenizer  ─▶  child: Parsed | Refusal        any number of times

Both sides import this module, so it loads no parsing library.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from jobs.retrieval.documents import Chunk, Document

Strategy = Literal["static", "sentence", "structure", "semantic"]
Code = Literal["unsupported_file", "invalid_file", "server_error"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cutting:
    """The options for cutting a text. Numbers are tokens of `tokenizer` (a tokenizer.json), without special tokens."""

    tokenizer: Path
    max_tokens: int
    overlap: int
    strategy: Strategy = "static"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError("A chunk has at least one token.")
        if not 0 <= self.overlap <= self.max_tokens // 2:  # more, and the work is no longer linear in the text
            raise ValueError("Chunks overlap by at most half of their size.")


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """Limits for one file."""

    seconds: float = 120  # wall time
    cpu_seconds: int = 120
    memory_bytes: int = 1024 * MIB  # address space, in addition to the child's when it begins with the file
    pages: int = 5000
    text_bytes: int = 64 * MIB  # UTF-8
    tokens: int = 5_000_000


class FileRefused(Exception):
    """The file cannot be made searchable; the message is for the client."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message


class Interrupted(Exception):
    """`Parser.interrupt` ended the parsing: nothing is known about the file."""


def invalid_file(message: str) -> FileRefused:
    return FileRefused("invalid_file", message)


def unsupported_file(message: str) -> FileRefused:
    return FileRefused("unsupported_file", message)


def no_text() -> FileRefused:
    return invalid_file("The file contains no text.")


# ── messages ──


class Ask(msgspec.Struct, frozen=True):
    filename: str
    max_tokens: int
    overlap: int
    strategy: Strategy
    limits: ParserLimits


class Parsed(msgspec.Struct, frozen=True, tag=True):
    """A document; `grown` is the address space that the child has gained since its start."""

    document: Document
    grown: int


class Refusal(msgspec.Struct, frozen=True, tag=True):
    code: Code
    message: str


Answer = Parsed | Refusal

encode = msgspec.msgpack.encode
decode_ask = msgspec.msgpack.Decoder(Ask).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def ask(filename: str, cutting: Cutting, limits: ParserLimits) -> Ask:
    return Ask(filename, cutting.max_tokens, cutting.overlap, cutting.strategy, limits)


def largest_answer(limits: ParserLimits) -> int:
    """Return the maximum bytes of an answer: the text, and as much again for its chunks."""
    return 2 * limits.text_bytes + (1 << 20)


def check(document: Document, limits: ParserLimits) -> Document:
    """Return the document if it is consistent: the child that made it may have read a hostile file. Raises Refused."""
    if len(document.text) > limits.text_bytes or not all(
        _are_in(document.text, pieces, limits) for pieces in (document.chunks, document.sentences)
    ):
        raise invalid_answer()
    return document


def _are_in(text: str, pieces: tuple[Chunk, ...], limits: ParserLimits) -> bool:
    good, before = len(pieces) <= len(text), 0
    for piece in pieces:
        good = good and before <= piece.start < piece.end <= len(text) and 0 <= piece.tokens <= limits.tokens
        before = piece.start
    return good


def invalid_answer() -> FileRefused:
    return FileRefused("server_error", "The parser gave an answer that makes no sense.")
