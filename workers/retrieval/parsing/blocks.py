"""What every format is turned into: blocks in reading order. The document's text is the blocks, blank lines between.

# Install            heading, level 1              section of what follows: ("Install",)
## On Linux          heading, level 2                                       ("Install", "On Linux")
Run this:            paragraph
pip install x        code, kept as it is
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from workers.retrieval.parsing.contract import Limits, invalid, no_text

Kind = Literal["heading", "paragraph", "code", "table", "list"]
Section = tuple[str, ...]

GAP: Final = "\n\n"
_HEADING_CHARACTERS: Final = 200  # of a heading, in the path that every chunk carries
_TITLE_CHARACTERS: Final = 500
_LINE_ENDS: Final = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_UNWANTED: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_BLANK_EDGES: Final = re.compile(r"\A(?:[^\S\n]*\n)+")


@dataclass(frozen=True, slots=True)
class Block:
    """`level` is of a heading, from 1. `name` is the heading's text where that is not `text`.

    `unread`: it is a picture, and there is nothing to read it with.
    """

    text: str
    kind: Kind = "paragraph"
    level: int = 0
    page: int | None = None
    name: str | None = None
    unread: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a format gives. Blocks come one by one: nothing reads on when the text is too long already."""

    blocks: Iterator[Block]
    title: str | None = None
    language: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A block at its place in the text."""

    start: int
    end: int
    kind: Kind
    page: int | None
    section: Section


@dataclass(frozen=True, slots=True)
class Laid:
    """A whole document, before it is cut."""

    text: str
    blocks: tuple[Placed, ...]
    title: str | None
    unread: bool = False


def lay(reading: Reading, limits: Limits) -> Laid:
    """Raises Refused when there is no text, or too much."""
    parts: list[str] = []
    placed: list[Placed] = []
    path: list[tuple[int, str]] = []
    at = size = 0
    unread = False
    for block in reading.blocks:
        unread |= block.unread
        text = clean(block.text)
        if not text:
            continue
        size += len(text.encode()) + len(GAP)
        if size > limits.text_bytes:
            raise invalid(f"The file has more than {limits.text_bytes >> 20} MiB of text.")
        if block.kind == "heading":
            _descend(path, block.level, _one_line(block.name or text, _HEADING_CHARACTERS))
        section = tuple(name for _, name in path)
        placed.append(Placed(at, at + len(text), block.kind, block.page, section))
        parts.append(text)
        at += len(text) + len(GAP)
    if not parts:
        raise no_text()
    return Laid(GAP.join(parts), tuple(placed), _title(reading, placed), unread)


def clean(text: str) -> str:
    """No control characters, one kind of line end, nothing that UTF-8 can't write, no blank lines around."""
    text = _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text)
    return _BLANK_EDGES.sub("", text).rstrip()


def _descend(path: list[tuple[int, str]], level: int, name: str) -> None:
    while path and path[-1][0] >= level:
        path.pop()
    path.append((level, name))


def _title(reading: Reading, placed: list[Placed]) -> str | None:
    given = _one_line(clean(reading.title or ""), _TITLE_CHARACTERS)
    if given:
        return given
    first = placed[0]
    return first.section[0] if first.kind == "heading" else None


def _one_line(text: str, most: int) -> str:
    return " ".join(text.split())[:most].rstrip()
