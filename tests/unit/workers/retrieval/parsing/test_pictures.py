"""Pictures of text, alone and as the pages of a scanned PDF, read by Tesseract in the child, within its limits."""

import io
import shutil
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pypdfium2
import pytest

from jobs.retrieval.documents import Document
from tests.support.ingestion import ReadOnce
from tests.unit.workers.retrieval.parsing import samples
from workers.retrieval.parsing import office, pdf
from workers.retrieval.parsing.contract import Cutting, FileRefused
from workers.retrieval.parsing.parser import Parser, ParserLimits

needs_tesseract = pytest.mark.usefixtures("tesseract")
WORDS = "The quick brown fox jumps over the lazy dog"


def drawn(text: str) -> tuple[bytes, int, int]:
    """Rows of grey bytes, of a page with that text."""
    page = pypdfium2.PdfDocument(samples.pdf([[text]]))[0]
    grey = page.render(scale=200 / 72, grayscale=True).to_numpy()
    height, width = grey.shape[:2]
    return grey.tobytes(), width, height


def scanned(*texts: str) -> bytes:
    """Build a PDF whose pages are pictures."""
    objects, kids = {}, []
    for n, text in enumerate(texts):
        rows, width, height = drawn(text)
        packed = zlib.compress(rows)
        size = b"/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8" % (width, height)
        head = b"<</Type/XObject/Subtype/Image%s/Filter/FlateDecode/Length %d>>stream\n" % (size, len(packed))
        objects[12 + 3 * n] = head + packed + b"\nendstream"
        show = b"q 600 0 0 800 0 0 cm /P Do Q"
        objects[11 + 3 * n] = b"<</Length %d>>stream\n%s\nendstream" % (len(show), show)
        used = b"/Resources<</XObject<</P %d 0 R>>>>/MediaBox[0 0 600 800]" % (12 + 3 * n)
        objects[10 + 3 * n] = b"<</Type/Page/Parent 2 0 R/Contents %d 0 R%s>>" % (11 + 3 * n, used)
        kids.append(b"%d 0 R" % (10 + 3 * n))
    objects[2] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(kids))
    objects[1] = b"<</Type/Catalog/Pages 2 0 R>>"
    return samples._pdf_file(objects, b"/Root 1 0 R")


def mixed(picture: str, text: str) -> bytes:
    """Build a PDF with a scanned page and a page of text."""
    both = pypdfium2.PdfDocument(scanned(picture))
    both.import_pages(pypdfium2.PdfDocument(samples.pdf([[text]])))
    written = io.BytesIO()
    both.save(written)
    return written.getvalue()


def parse(parser: Parser | ReadOnce, folder: Path, data: bytes, name: str) -> Document:
    (folder / name).write_bytes(data)
    return parser.parse(folder / name, name, Cutting(samples.word_piece(), 100, 0))


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Parser]:
    """Return a parser whose child finds no Tesseract."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with closing(Parser(ParserLimits())) as parser:
        yield parser


@needs_tesseract
def test_picture_is_read(parser: ReadOnce, tmp_path: Path) -> None:
    page = pypdfium2.PdfDocument(samples.pdf([[WORDS]]))[0]
    picture = pdf._png(page.render(scale=200 / 72, grayscale=True).to_numpy())

    assert WORDS in parse(parser, tmp_path, picture, "a.png").text


@needs_tesseract
def test_scanned_pages_are_read_and_known_by_their_number(parser: ReadOnce, tmp_path: Path) -> None:
    found = parse(parser, tmp_path, scanned(WORDS, "Second page of the scan"), "scan.txt")

    assert WORDS in found.text
    assert "Second page of the scan" in found.text
    assert {chunk.page for chunk in found.chunks} >= {1}


def test_without_tesseract_a_scan_is_refused_by_a_code_that_says_so(blind: Parser, tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="'parse' and Tesseract") as refused:
        parse(blind, tmp_path, scanned(WORDS, "Second page of the scan"), "scan.pdf")

    assert refused.value.code == "unsupported_file"


@pytest.mark.parametrize(("pages", "texts"), [(([], [WORDS]), ["", WORDS]), (([], []), ["", ""])])
def test_pages_with_text_or_without_pictures_need_no_tesseract(
    monkeypatch: pytest.MonkeyPatch, pages: tuple[list[str], ...], texts: list[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)

    assert [block.text for block in pdf.read(samples.pdf([*pages]), ParserLimits()).blocks] == texts


@pytest.mark.parametrize("seen", ["What Tesseract saw.", None])
def test_a_scanned_page_has_the_text_that_tesseract_sees_or_none(
    monkeypatch: pytest.MonkeyPatch, seen: str | None
) -> None:
    pictures: list[bytes] = []

    def look(data: bytes, media: str) -> str:
        pictures.append(data[:8])
        assert media == "image/png"
        if seen is None:
            raise FileRefused("invalid_file", "It is no picture.")
        return seen

    monkeypatch.setattr(office, "sees", lambda: True)
    monkeypatch.setattr(office, "picture_text", look)

    assert [block.text for block in pdf.read(scanned("A picture"), ParserLimits()).blocks] == [seen or ""]
    assert pictures == [b"\x89PNG\r\n\x1a\n"]


def test_scanned_pdf_without_text_is_refused_without_tesseract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)

    with pytest.raises(FileRefused, match="Tesseract"):
        list(pdf.read(scanned("A picture"), ParserLimits()).blocks)


def test_missing_tesseract_leaves_only_scanned_pages_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)

    blocks = list(pdf.read(mixed("A picture", WORDS), ParserLimits()).blocks)

    assert [(block.text, block.unread) for block in blocks] == [("", True), (WORDS, False)]


def test_a_document_says_that_pages_of_it_were_not_read(blind: Parser, tmp_path: Path) -> None:
    whole = parse(blind, tmp_path, samples.pdf([[WORDS]]), "whole.pdf")
    found = parse(blind, tmp_path, mixed("A picture", WORDS), "mixed.pdf")

    assert (whole.unread, found.unread, found.text) == (False, True, WORDS)


@needs_tesseract
def test_picture_without_text_says_so(parser: ReadOnce, tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="no text"):
        parse(parser, tmp_path, scanned(""), "scan.pdf")
