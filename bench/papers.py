"""A document that is uploaded into a vector store, and the writer of those that are PDF."""

import textwrap
from dataclasses import dataclass

_LINES, _COLUMNS = 54, 92  # of a page


@dataclass(frozen=True, slots=True)
class Paper:
    """A document as it is uploaded."""

    name: str
    data: bytes


def pdf(text: str) -> bytes:
    """Return a text as PDF pages in one font, with the smallest set of objects of ISO 32000-1."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, _COLUMNS) or [""]]
    pages = [lines[start : start + _LINES] for start in range(0, len(lines), _LINES)] or [[]]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    for n, page in enumerate(pages):
        box = "/MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} /Contents {5 + 2 * n} 0 R >>".encode())
        objects.append(_stream(page))
    return _file(objects)


def _stream(lines: list[str]) -> bytes:
    shown = b"".join(b"(%b) '\n" % _escaped(line) for line in lines)
    content = b"BT /F1 9 Tf 13 TL 50 800 Td\n" + shown + b"ET"
    return b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content)


def _escaped(line: str) -> bytes:
    text = line.encode("cp1252", "replace")
    return text.replace(b"\\", rb"\\").replace(b"(", rb"\(").replace(b")", rb"\)")


def _file(objects: list[bytes]) -> bytes:
    """Return a PDF file: the objects, and the table of their offsets."""
    written = bytearray(b"%PDF-1.4\n")
    offsets = []
    for n, content in enumerate(objects, 1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%b\nendobj\n" % (n, content)
    table = len(written)
    written += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    written += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    written += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(written)
