"""PDF, page by page. The outline's entries that are found on their page become headings.

PDFium is not thread-safe and this process has one thread. Scanned pages have no text here.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

import pypdfium2
from pypdfium2 import raw

from workers.parsing import dates, plain
from workers.parsing.blocks import Block, Reading, clean
from workers.parsing.terms import Limits, Refused, invalid

_OUTLINE_ENTRIES: Final = 10_000
_HYPHEN: Final = re.compile("[\x02\ufffe]\\s*")  # PDFium's mark for a word that goes on in the next line

Entry = tuple[int, str]  # level from 1, title in one line


def read(data: bytes, limits: Limits) -> Reading:
    """Raises Refused."""
    document = _opened(data)
    if len(document) > limits.pages:
        raise invalid(f"The file has {len(document)} pages; at most {limits.pages} can be searched.")
    said = document.get_metadata_value
    time = dates.first(said("ModDate"), said("CreationDate"))
    return Reading(_blocks(document), said("Title") or None, time=time)


def _opened(data: bytes) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise _refusal(error) from None


def _refusal(error: pypdfium2.PdfiumError) -> Refused:
    if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
        return invalid("The file is encrypted: it can't be read without its password.")
    return invalid("The file is damaged: it is no PDF that can be read.")


def _blocks(document: pypdfium2.PdfDocument) -> Iterator[Block]:
    outline = _outline(document)
    for number in range(len(document)):
        yield from _page(_text(document, number), number + 1, outline.get(number, []))


def _text(document: pypdfium2.PdfDocument, number: int) -> str:
    """One damaged page does not cost the others."""
    try:
        page = document[number]
        try:
            text = page.get_textpage().get_text_range()
        finally:
            page.close()
    except pypdfium2.PdfiumError:
        return ""
    return clean(_HYPHEN.sub("", text))


def _page(text: str, number: int, entries: list[Entry]) -> Iterator[Block]:
    lines = text.split("\n")
    at = 0
    for level, title in entries:
        found = next((n for n in range(at, len(lines)) if _is_title(lines[n], title)), None)
        if found is not None:
            yield from _paragraphs(lines[at:found], number)
            yield Block(lines[found], "heading", level, number, title)
            at = found + 1
    yield from _paragraphs(lines[at:], number)


def _paragraphs(lines: list[str], number: int) -> Iterator[Block]:
    for block in plain.blocks("\n".join(lines)):
        yield Block(block.text, page=number)


def _is_title(line: str, title: str) -> bool:
    """A line of the page may have the number before it: `2.1 Installing`."""
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
