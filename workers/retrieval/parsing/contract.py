"""What is asked of parsing, and how it says no. Plain values: parent and child both know them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Strategy = Literal["static", "sentence", "structure", "semantic"]
Code = Literal["unsupported_file", "invalid_file", "server_error"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a text is cut. Numbers are tokens of `tokenizer` (a tokenizer.json), without special tokens."""

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
class Limits:
    """For one file."""

    seconds: float = 120  # on the clock
    cpu_seconds: int = 120
    memory_bytes: int = 1024 * MIB  # address space, beyond what the child has when it begins with the file
    pages: int = 5000
    text_bytes: int = 64 * MIB  # UTF-8
    tokens: int = 5_000_000


class Refused(Exception):
    """This file can't be searched; the message is for whoever uploaded it."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message


class Interrupted(Exception):
    """`Parser.interrupt` ended it: nothing is known about the file."""


def invalid(message: str) -> Refused:
    return Refused("invalid_file", message)


def unsupported(message: str) -> Refused:
    return Refused("unsupported_file", message)


def no_text() -> Refused:
    return invalid("The file contains no text.")
