"""The confined process that checks and tokenises rows of training files, until its parent has no more.

    parent: Load                              ─▶ child: Loaded | NotLoaded
    parent: Read, with a pipe of a file's bytes ─▶ child: Checked, of some rows each; the last one says so

Rows are hostile, and so may be what they do to a tokenizer or a chat template. Both sides import this module.
"""

import hashlib
import os
import sys
from collections.abc import Generator
from itertools import islice
from typing import Any, BinaryIO, Final

import msgspec

from jobs.batches import lines
from jobs.batches.lines import Bad
from jobs.finetuning import examples
from workers.engines.training import rows
from workers.sandbox.channel import Channel

_ROWS: Final = 256  # of an answer
_BUFFER: Final = 1 << 20
_SHOWN: Final = 500  # characters of an error, which a template may write
_ENCODE: Final = {"supervised": rows.encode_supervised, "dpo": rows.encode_preference}


class Load(msgspec.Struct, frozen=True, tag=True):
    """The folder of a base, the most tokens of a row beside what the base can hold, and a chat template in its place.

    With `truncate` longer rows are cut.
    """

    folder: str
    max_tokens: int | None
    truncate: bool = False
    chat_template: str | None = None


class Read(msgspec.Struct, frozen=True, tag=True):
    """How the rows of a file are read. With `timed` they have times."""

    method: examples.Method
    timed: bool


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """Say that the tokenizer is loaded, whether it has a chat template, and the most tokens of a row."""

    has_template: bool
    longest: int


class NotLoaded(msgspec.Struct, frozen=True, tag=True):
    """Say why the tokenizer could not be loaded."""

    why: str


class GoodRow(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A good row: its line, its tokens, the hash of its content, its time in seconds, and whether it was cut."""

    line: int
    tokens: int
    fingerprint: int
    time: float | None
    is_truncated: bool = False


class BadRow(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The error of a row."""

    line: int | None
    code: str
    message: str
    param: str | None


class Checked(msgspec.Struct, frozen=True, tag=True):
    """Rows of a file, in their order. `last`: the file has no more."""

    rows: list[GoodRow | BadRow]
    last: bool


encode = msgspec.msgpack.encode
_decode_request = msgspec.msgpack.Decoder(Load | Read).decode
_decode_loaded = msgspec.msgpack.Decoder(Loaded | NotLoaded).decode
decode_checked = msgspec.msgpack.Decoder(Checked).decode


def decode_loaded(message: bytes) -> Loaded | NotLoaded:
    answer: Loaded | NotLoaded = _decode_loaded(message)
    return answer


class RowChecker:
    """Check rows by the tokenizer of a base."""

    def __init__(self, asked: Load) -> None:
        """Load the tokenizer. Raises: OSError, ValueError."""
        self._tokenizer, context = rows.load_tokenizer(asked.folder, asked.chat_template)
        self.longest = min(asked.max_tokens or context, context)
        self._truncate = asked.truncate
        self.has_template = self._tokenizer.chat_template is not None

    def read(self, asked: Read, handle: BinaryIO) -> Generator[GoodRow | BadRow]:
        """Yield what each row of a file is."""
        return (self._check(asked, text) for text in lines.read(handle))

    def _check(self, asked: Read, text: lines.InputLine) -> GoodRow | BadRow:
        try:
            row = examples.check(text, asked.method, timed=asked.timed)
            if isinstance(row, Bad):
                return BadRow(row.line, row.code, row.message[:_SHOWN], row.param)
            encoded, is_truncated = self._encode_row(asked.method, text.number, row)
        except rows.RowRefused as error:
            return BadRow(text.number, "invalid_example", str(error)[:_SHOWN], None)
        except MemoryError:
            return BadRow(text.number, "invalid_example", "The row takes more memory than there is.", None)
        tokens = sum(len(ids) for name, ids in encoded.items() if name != "labels")
        time = examples.time_of(row) if asked.timed else None
        return GoodRow(text.number, tokens, _fingerprint(row), time, is_truncated)

    def _encode_row(self, method: examples.Method, line: int, row: dict[str, Any]) -> tuple[dict[str, list[int]], bool]:
        """Return the tokens of a row, and whether they were cut. Raises: RowRefused."""
        try:
            return _ENCODE[method](self._tokenizer, line, row, self.longest), False
        except rows.RowTooLong:
            if not self._truncate:
                raise
        return _ENCODE[method](self._tokenizer, line, row, self.longest, truncate=True), True


def _fingerprint(row: dict[str, Any]) -> int:
    return int.from_bytes(hashlib.blake2b(examples.canonical(row), digest_size=8).digest(), "little")


def main(channel: Channel) -> None:
    # Tokenizers need no torch, which takes seconds and a gigabyte, and writes files when it is imported.
    sys.modules["torch"] = None  # type: ignore[assignment]
    checker: RowChecker | None = None
    channel.ready()
    while (received := channel.receive()) is not None:
        message, descriptors = received
        asked = _decode_request(message)
        if isinstance(asked, Load):
            try:
                checker = RowChecker(asked)
                channel.send(encode(Loaded(checker.has_template, checker.longest)))
            except (OSError, ValueError) as error:
                channel.send(encode(NotLoaded(str(error)[:_SHOWN])))
        elif checker is not None:
            with os.fdopen(descriptors[0], "rb", buffering=_BUFFER) as handle:
                checked = checker.read(asked, handle)
                while some := list(islice(checked, _ROWS)):
                    channel.send(encode(Checked(some, last=False)))
            channel.send(encode(Checked([], last=True)))
