"""Read PDF page by page. Entries of the outline that are found on their page become headings.

PDFium is not thread-safe, and this process has one thread. Pages that are images are read by Tesseract, if installed.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import pypdfium2
from pypdfium2 import raw

from workers.retrieval.parsing import office, plain
from workers.retrieval.parsing.blocks import Block, Reading, clean, first_date
from workers.retrieval.parsing.contract import FileRefused, ParserLimits, invalid_file, unsupported_file

_OUTLINE_ENTRIES: Final = 10_000
_POINTS: Final = 72  # to the inch
_DPI: Final = 200  # recommended for Tesseract
_PIXELS: Final = 8_000_000  # at most, whatever size the page has
_HYPHEN: Final = re.compile("[\x02\ufffe]\\s*")  # PDFium's mark for a word that goes on in the next line

Entry = tuple[int, str]  # level from 1, title in one line


class DamagedPdf(FileRefused):
    """PDFium cannot read the file: it is damaged, or no PDF at all."""

    def __init__(self) -> None:
        super().__init__("invalid_file", "The file is damaged: it is no PDF that can be read.")


def read(data: bytes, limits: ParserLimits) -> Reading:
    """Return the blocks of a PDF. Raises Refused."""
    document = _open(data)
    if len(document) > limits.pages:
        raise invalid_file(f"The file has {len(document)} pages; at most {limits.pages} can be searched.")
    metadata = document.get_metadata_value
    time = first_date(metadata("ModDate"), metadata("CreationDate"))
    return Reading(_blocks(document), metadata("Title") or None, time=time)


def _open(data: bytes) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise _refusal(error) from None


def _refusal(error: pypdfium2.PdfiumError) -> FileRefused:
    if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
        return invalid_file("The file is encrypted: it can't be read without its password.")
    return DamagedPdf()


def _blocks(document: pypdfium2.PdfDocument) -> Iterator[Block]:
    """Yield the blocks of all pages. Raises Refused where all are pictures that cannot be read here."""
    outline = _outline(document)
    has_text = unread = False
    for number in range(len(document)):
        text = _text(document, number)
        has_text, unread = has_text or bool(text), unread or text is None
        if text is None:
            yield Block("", page=number + 1, unread=True)
        else:
            yield from _page(text, number + 1, outline.get(number, []))
    if unread and not has_text:
        raise unsupported_file(
            "Scanned pages can be read where Nightmill is installed with the extra 'parse' and Tesseract is there."
        )


def _text(document: pypdfium2.PdfDocument, number: int) -> str | None:
    """Return a page's text: empty for a damaged page, None for a picture that cannot be read here."""
    try:
        page = document[number]
        try:
            text = clean(_HYPHEN.sub("", page.get_textpage().get_text_range()))
            return text or _picture_text(page)
        finally:
            page.close()
    except pypdfium2.PdfiumError:
        return ""


def _picture_text(page: pypdfium2.PdfPage) -> str | None:
    """Return the text of a page of pictures; None where there is nothing to read them with."""
    if not any(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3)):
        return ""
    if not office.sees():
        return None
    width, height = page.get_size()
    scale = min(_DPI / _POINTS, (_PIXELS / max(1.0, width * height)) ** 0.5)
    picture = page.render(scale=scale, grayscale=True, rev_byteorder=True).to_numpy()
    try:
        return clean(office.picture_text(_png(picture), "image/png"))
    except FileRefused:  # it is no picture that Tesseract makes sense of
        return ""


def _png(grey: Any) -> bytes:
    """Return grey pixels as PNG."""
    height, width = grey.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in grey.reshape(height, width))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _page(text: str, number: int, entries: list[Entry]) -> Iterator[Block]:
    lines = text.split("\n")
    at = 0
    for level, title in entries:
        position = next((n for n in range(at, len(lines)) if _is_title(lines[n], title)), None)
        if position is not None:
            yield from _paragraphs(lines[at:position], number)
            yield Block(lines[position], "heading", level, number, title)
            at = position + 1
    yield from _paragraphs(lines[at:], number)


def _paragraphs(lines: list[str], number: int) -> Iterator[Block]:
    for block in plain.blocks("\n".join(lines)):
        yield Block(block.text, page=number)


def _is_title(line: str, title: str) -> bool:
    """Tell whether a line is a title, also with the number before it: `2.1 Installing`."""
    words = " ".join(line.split())
    return words == title or (words.endswith(f" {title}") and len(words) <= len(title) + 12)


def _outline(document: pypdfium2.PdfDocument) -> dict[int, list[Entry]]:
    entries: dict[int, list[Entry]] = {}
    for bookmark in islice(document.get_toc(), _OUTLINE_ENTRIES):
        target = bookmark.get_dest()
        page = None if target is None else target.get_index()
        title = " ".join(bookmark.get_title().split())
        if page is not None and title:
            entries.setdefault(page, []).append((bookmark.level + 1, title))
    return entries
