"""The common form of all formats: blocks in reading order, a title, a language, a time.

# Install            heading, level 1              section of what follows: ("Install",)
## On Linux          heading, level 2                                       ("Install", "On Linux")
Run this:            paragraph
pip install x        code, stored as it is

The document's text is its blocks with blank lines between them.

The time is when a document was written or last changed, by its own statement: in UTC, to the second or to the day. A
time without a zone has no moment in UTC, so its time of day is dropped: 2024-01-31T10:00 is 2024-01-31.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from workers.retrieval.parsing.contract import ParserLimits, invalid_file, no_text

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
    """One block. `level` is a heading's, from 1. `name` is the heading's text, if it is not `text`.

    `unread`: it is an image, and no OCR is available.
    """

    text: str
    kind: Kind = "paragraph"
    level: int = 0
    page: int | None = None
    name: str | None = None
    unread: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of a format's reader. Blocks are read lazily, so that reading stops when the text is too long."""

    blocks: Iterator[Block]
    title: str | None = None
    language: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A block with its position in the text."""

    start: int
    end: int
    kind: Kind
    page: int | None
    section: Section


@dataclass(frozen=True, slots=True)
class Laid:
    """The text of a whole document, before it is cut."""

    text: str
    blocks: tuple[PlacedBlock, ...]
    title: str | None
    unread: bool = False


def lay(reading: Reading, limits: ParserLimits) -> Laid:
    """Join the blocks to one text.

    Raises: Refused, if there is no text or too much.
    """
    parts: list[str] = []
    blocks: list[PlacedBlock] = []
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
            raise invalid_file(f"The file has more than {limits.text_bytes >> 20} MiB of text.")
        if block.kind == "heading":
            _descend(path, block.level, _one_line(block.name or text, _HEADING_CHARACTERS))
        section = tuple(name for _, name in path)
        blocks.append(PlacedBlock(at, at + len(text), block.kind, block.page, section))
        parts.append(text)
        at += len(text) + len(GAP)
    if not parts:
        raise no_text()
    return Laid(GAP.join(parts), tuple(blocks), _title(reading, blocks), unread)


def clean(text: str) -> str:
    """Remove control characters, normalize line ends, replace surrogates, and strip blank lines at both ends."""
    text = _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text)
    return _BLANK_EDGES.sub("", text).rstrip()


def _descend(path: list[tuple[int, str]], level: int, name: str) -> None:
    while path and path[-1][0] >= level:
        path.pop()
    path.append((level, name))


def _title(reading: Reading, blocks: list[PlacedBlock]) -> str | None:
    given = _one_line(clean(reading.title or ""), _TITLE_CHARACTERS)
    if given:
        return given
    first = blocks[0]
    return first.section[0] if first.kind == "heading" else None


def _one_line(text: str, limit: int) -> str:
    return " ".join(text.split())[:limit].rstrip()


# ── dates ──

_MAX_CHARACTERS: Final = 64  # characters
#: `D:20240131120000+01'00'`: everything behind the year may be missing.
_PDF: Final = re.compile(
    r"(?:D:)?(\d{4})(?:(\d\d)(?:(\d\d)(?:(\d\d)(\d\d)(\d\d)?(?:(Z)(?:00'?00'?)?|([+-]\d\d)'?(\d\d)?'?)?)?)?)?", re.ASCII
)
_SHORT: Final = re.compile(r"\d{4}(?:-(?:0[1-9]|1[0-2]))?", re.ASCII)  # EPUB: a year, or a month


def first_date(*texts: str | None) -> str | None:
    """Return the first text that is a date in the form of ISO 8601, mail or PDF, as ISO 8601."""
    dates = (_parse_date(text.strip()) for text in texts if text and len(text.strip()) <= _MAX_CHARACTERS)
    return next((day for day in dates if day), None)


def _parse_date(text: str) -> str | None:
    for read in (_iso, _mail, _pdf):
        try:
            date = read(text)
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
        if date:
            return date
    return None


def _iso(text: str) -> str | None:
    if _SHORT.fullmatch(text):
        return text if int(text[:4]) else None
    if not text[:4].isdigit() or "-" not in text[:8]:
        return None
    if len(text) <= len("2024-01-31"):
        return date.fromisoformat(text).isoformat()
    return _format_date(datetime.fromisoformat(text))


def _mail(text: str) -> str | None:
    return _format_date(parsedate_to_datetime(text)) if not text[:4].isdigit() and not text.startswith("D:") else None


def _pdf(text: str) -> str | None:
    match = _PDF.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, zulu, hours, minutes = match.groups()
    if day is None:
        return _iso("-".join(filter(None, (year, month))))
    if hour is None:
        return date(int(year), int(month), int(day)).isoformat()
    zone = "+00:00" if zulu else f"{hours}:{minutes or '00'}" if hours else ""
    return _format_date(datetime.fromisoformat(f"{year}-{month}-{day}T{hour}:{minute}:{second or '00'}{zone}"))


def _format_date(at: datetime) -> str:
    if at.tzinfo is None:
        return at.date().isoformat()
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ").zfill(len("2024-01-31T10:00:00Z"))
