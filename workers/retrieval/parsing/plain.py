"""Decode bytes that are text, in whatever encoding, and read text without markup: prose, code, CSV, JSON, JSON Lines.

A byte order mark decides; then zero bytes (UTF-16 and UTF-32 without one); then UTF-8, which nothing else passes for by
accident; then what the text says of itself; then a guess by its letters.

A row of CSV or a record of JSON Lines is one line of its block, so that a cut falls between two of them.
"""

import codecs
import collections
import csv
import io
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Final

import msgspec
from charset_normalizer import from_bytes

from workers.retrieval.parsing.blocks import Block, Kind, Reading
from workers.retrieval.parsing.contract import unsupported_file

_MARKS: Final = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE: Final = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
#: What is written under a narrower name, as the Encoding Standard (WHATWG) has it. Python's names, where it has any.
_MEANT: Final = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874", "iso8859-11": "cp874",
    "shift_jis": "cp932", "x-sjis": "cp932", "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030",
    "euc_kr": "cp949",
}  # fmt: skip
#: In order of preference: many single-byte encodings of the same region look equally good.
_GUESSES: Final = (
    "cp1252", "cp1251", "koi8_r", "cp1250", "iso8859_2", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257",
    "cp932", "euc_jp", "iso2022_jp", "gb18030", "big5", "cp949", "tis_620", "cp866", "mac_roman",
)  # fmt: skip
_GUESSED_FROM: Final = 1 << 18  # bytes
_SURE: Final = 0.1  # closer than this, two guesses are equally good
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_NOT_IN_CP1252: Final = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_CONTROL_SHARE: Final = 0.01  # of a text; of random bytes it is a tenth
_CONTROL_WIDE: Final = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f\ue000-\uf8ff\ufffe\uffff]")
_ASCII: Final = re.compile("[\t\n\r -~]")
_ASCII_SHARE: Final = 0.02  # even Chinese has line ends, digits and spaces
_JAPANESE_ESCAPE: Final = b"\x1b$B"  # the one old encoding that is valid UTF-8
_BLANK_LINES: Final = re.compile(r"\n(?:[^\S\n]*\n)+")


def decode(data: bytes, declared: str | None = None) -> str:
    """Return bytes as text. Raises Refused for bytes that are not text."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    if b"\x00" in data:
        return _decode_wide(data)
    text = _decode_strict(data, "iso2022_jp" if _JAPANESE_ESCAPE in data else "utf-8")
    if text is None:
        _check_text(data)
        text = _decode_declared(data, declared) if declared else None
    return _decode_guessed(data) if text is None else text


def is_text(data: bytes) -> bool:
    """Tell whether bytes are text, of a byte or more a character, in an encoding that need not be known."""
    if b"\x00" in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    return _decode_strict(data, "utf-8") is not None or not _is_frequent(_CONTROL, data)


def blocks(text: str, kind: Kind = "paragraph") -> Iterator[Block]:
    """Yield paragraphs; what is between blank lines stays as it is."""
    at = 0
    for gap in _BLANK_LINES.finditer(text):
        yield Block(text[at : gap.start()], kind)
        at = gap.end()
    yield Block(text[at:], kind)


def read(text: str) -> Reading:
    return Reading(blocks(_line_ends(text)))


def read_code(text: str) -> Reading:
    """Return one block: its blank lines are its own."""
    return Reading(iter([Block(text, "code")]))


def not_text() -> Exception:
    return unsupported_file("Files of this kind can't be searched: it is neither text nor a document that can be read.")


def _line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode_strict(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError, ValueError):
        return None


def _decode_declared(data: bytes, label: str) -> str | None:
    """Return None where the bytes are of another encoding; one or two stray bytes don't say so."""
    name = _codec_name(label)
    text = _decode_strict(data, name)
    if text is None and name == "cp1252" and not _is_frequent(_NOT_IN_CP1252, data):
        return data.decode(name, errors="replace")
    return text


def _codec_name(label: str) -> str:
    try:
        name = codecs.lookup(label).name
    except LookupError:
        name = label.lower()
    return _MEANT.get(name, name)


def _check_text(data: bytes) -> None:
    if _is_frequent(_CONTROL, data):
        raise not_text()


def _is_frequent(unlikely: re.Pattern[bytes], data: bytes) -> bool:
    sample = data[:_GUESSED_FROM]
    return len(unlikely.findall(sample)) > max(1, len(sample) * _CONTROL_SHARE)


def _decode_wide(data: bytes) -> str:
    """Decode UTF-16 or UTF-32 without a mark, or UTF-8 with a stray zero."""
    for encoding in _WIDE:
        sample = _decode_strict(data[:4096], encoding)  # a multiple of the width, unless that is the whole
        if sample is not None and _looks_readable(sample):
            return data.decode(encoding, errors="replace")
    _check_text(data)
    text = _decode_strict(data, "utf-8")
    if text is None:
        raise not_text()
    return text


def _looks_readable(sample: str) -> bool:
    odd, ascii_ = len(_CONTROL_WIDE.findall(sample)), len(_ASCII.findall(sample))
    return odd <= len(sample) * _CONTROL_SHARE and ascii_ >= len(sample) * _ASCII_SHARE


def _decode_guessed(data: bytes) -> str:
    matches = from_bytes(data[:_GUESSED_FROM], cp_isolation=list(_GUESSES), enable_fallback=False)
    best = matches.best()
    if best is None:
        return data.decode("cp1252", errors="replace")
    floor = best.coherence - _SURE
    good = {match.encoding for match in matches if match.chaos <= best.chaos + _SURE and match.coherence >= floor}
    encoding = next(name for name in _GUESSES if name in good)
    return data.decode(encoding, errors="replace")


# ── records ──

_DELIMITERS: Final = (",", ";", "\t", "|")
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
#: An escape of one character, or of one outside the first plane. The second alternative keeps `\\u0041` as it is.
_ESCAPE: Final = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|\\u([0-9a-f]{4})|\\[^u]", re.IGNORECASE)
_END: Final = "end"  # a row of its own, unless a quote is still open
_ROWS: Final = 1000  # a block: what is checked against the limits at once


def is_json(text: str) -> bool:
    """Tell whether a text is one object or list."""
    edges = text.strip(" \t\r\n")
    if not (edges[:1] in ("{", "[") and edges[-1:] in ("}", "]")):
        return False
    try:
        msgspec.json.decode(edges, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False
    return True


def read_json(text: str) -> Reading:
    """Return a JSON text as it is; indent it where it is all in one line."""
    edges = text.strip(" \t\r\n")
    if edges.count("\n") < len(edges) // 2000 + 1:
        edges = msgspec.json.format(edges, indent=2)
    return Reading(iter([Block(_unescape(edges), "code")]))


def read_lines(text: str) -> Reading:
    return Reading(Block(_unescape(line)) for line in io.StringIO(text))


def read_table(text: str) -> Reading:
    first = _QUOTED.sub("", text[: 1 << 16].lstrip().partition("\n")[0])
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(sys.maxsize)
    text = text.replace("\0", "")
    lines = io.StringIO(text, newline="")
    if _quotes(text, delimiter):
        return Reading(_tables(csv.reader(lines, delimiter=delimiter)))
    return Reading(_tables(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)))


def table_row(cells: list[str]) -> str:
    """Return one row of a table as one line."""
    return " | ".join(" ".join(cell.split()) for cell in cells)


def _quotes(text: str, delimiter: str) -> bool:
    """Tell whether quotes hold fields: one that never closes would hold all rows after it.

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
            lines.append(table_row(cells))
        if len(lines) == _ROWS:
            yield Block("\n".join(lines), "table")
            lines.clear()
    yield Block("\n".join(lines), "table")


def _unescape(text: str) -> str:
    return _ESCAPE.sub(_character, text) if "\\u" in text else text


def _character(match: re.Match[str]) -> str:
    """Return the character itself where JSON does not need the escape."""
    high, low, code = match.groups()
    if high:
        return chr(0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00)
    if code and int(code, 16) >= 0xA0 and not 0xD800 <= int(code, 16) < 0xE000:
        return chr(int(code, 16))
    return match.group()
