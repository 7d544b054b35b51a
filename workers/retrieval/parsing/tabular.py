"""CSV, JSON and JSON Lines: a row or record a line, so that a cut falls between two of them."""

import collections
import csv
import io
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Final

import msgspec

from workers.retrieval.parsing.blocks import Block, Reading

_DELIMITERS: Final = (",", ";", "\t", "|")
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
#: An escape of one character, or of one outside the first plane. The second alternative keeps `\\u0041` as it is.
_ESCAPE: Final = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|\\u([0-9a-f]{4})|\\[^u]", re.IGNORECASE)
_END: Final = "end"  # a row of its own, unless a quote is still open
_ROWS: Final = 1000  # a block: what is checked against the limits at once


def is_json(text: str) -> bool:
    """Whether it is one object or list."""
    edges = text.strip(" \t\r\n")
    if not (edges[:1] in ("{", "[") and edges[-1:] in ("}", "]")):
        return False
    try:
        msgspec.json.decode(edges, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False
    return True


def read_json(text: str) -> Reading:
    """As it is, unless it is all in one line."""
    edges = text.strip(" \t\r\n")
    if edges.count("\n") < len(edges) // 2000 + 1:
        edges = msgspec.json.format(edges, indent=2)
    return Reading(iter([Block(_unescaped(edges), "code")]))


def read_lines(text: str) -> Reading:
    return Reading(Block(_unescaped(line)) for line in io.StringIO(text))


def read_table(text: str) -> Reading:
    first = _QUOTED.sub("", text[: 1 << 16].lstrip().partition("\n")[0])
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(sys.maxsize)
    text = text.replace("\0", "")
    lines = io.StringIO(text, newline="")
    if _quotes(text, delimiter):
        return Reading(_tables(csv.reader(lines, delimiter=delimiter)))
    return Reading(_tables(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)))


def row(cells: list[str]) -> str:
    """One line, as every table here is written."""
    return " | ".join(" ".join(cell.split()) for cell in cells)


def _quotes(text: str, delimiter: str) -> bool:
    """Whether its quotes hold fields: one that never closes would hold all rows after it.

    Between tabs inches and speech have quotes of their own, so there one that holds a field is followed by a tab.
    """
    if '"' not in text:
        return True
    lines = itertools.chain(io.StringIO(text, newline=""), [_END])
    rows = csv.reader(lines, delimiter=delimiter, strict=delimiter == "\t")
    try:
        return collections.deque(rows, maxlen=1).pop() == [_END]
    except csv.Error:
        return False


def _tables(rows: Iterator[list[str]]) -> Iterator[Block]:
    lines: list[str] = []
    for cells in rows:
        if any(cell.strip() for cell in cells):
            lines.append(row(cells))
        if len(lines) == _ROWS:
            yield Block("\n".join(lines), "table")
            lines.clear()
    yield Block("\n".join(lines), "table")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_character, text) if "\\u" in text else text


def _character(match: re.Match[str]) -> str:
    """The character itself where JSON does not need the escape."""
    high, low, one = match.groups()
    if high:
        return chr(0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00)
    if one and int(one, 16) >= 0xA0 and not 0xD800 <= int(one, 16) < 0xE000:
        return chr(int(one, 16))
    return match.group()
