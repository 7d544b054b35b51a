"""Word, PowerPoint, Excel, OpenDocument, EPUB, e-mail, RTF and pictures, read by kreuzberg (the extra `parse`).

It gives Markdown, so its text goes the way of Markdown; the characters that it escaped are put back.
"""

import html
import importlib
import importlib.util
import io
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, Final

from workers.retrieval.parsing import archive, dates, markdown
from workers.retrieval.parsing.blocks import Block, Reading
from workers.retrieval.parsing.contract import Limits, Refused, invalid, unsupported

_OPENXML: Final = "application/vnd.openxmlformats-officedocument."
WORD: Final = _OPENXML + "wordprocessingml.document"
SLIDES: Final = _OPENXML + "presentationml.presentation"
SHEETS: Final = _OPENXML + "spreadsheetml.sheet"
MAIL: Final = "message/rfc822"
RTF: Final = "application/rtf"
_PARTS: Final = {"word/document.xml": WORD, "ppt/presentation.xml": SLIDES, "xl/workbook.xml": SHEETS}
_OPEN_DOCUMENT: Final = "application/vnd.oasis.opendocument."
_MIMETYPES: Final = (
    "application/epub+zip", _OPEN_DOCUMENT + "text", _OPEN_DOCUMENT + "spreadsheet", _OPEN_DOCUMENT + "presentation",
)  # fmt: skip
_PICTURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_ENCRYPTED: Final = "EncryptedPackage".encode("utf-16-le")
_MAIL_HEADER: Final = re.compile(rb"^(?:From [^\n]*\n)?[A-Za-z][A-Za-z0-9-]{1,60}:[ \t]")
_MAIL_HEADERS: Final = re.compile(
    rb"^(?:received|return-path|message-id|mime-version|from|to|subject|date|delivered-to):",
    re.IGNORECASE | re.MULTILINE,
)
_MAIL_SURE: Final = 3  # headers of these that nothing but mail begins with
_TIMES: Final = ("modified_at", "created_at", "date")
_NAMES: Final = "Word, PowerPoint, Excel, OpenDocument, EPUB, e-mail, RTF and pictures"
_ESCAPED: Final = re.compile(r"\\([!-/:-@\[-`{-~])")
#: kreuzberg 4.10 loses `&amp;` and the like from Word's text, so they travel as characters that nobody uses.
_REFERENCE: Final = re.compile(rb"&(amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9a-fA-F]{1,6});")
_PRIVATE: Final = 0xF0000
_FROM_PRIVATE: Final = {_PRIVATE + code: chr(code) for code in map(ord, "&<>\"'")}


def kind(data: bytes, filename: str) -> str | None:
    """Its media type; None when it is none of these. Raises Refused for what is known not to be readable."""
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(data)
    if data.startswith(_OLE):
        raise _old_office(data)
    if data.startswith(b"{\\rtf"):
        return RTF
    if _is_mail(data[:8192], filename):
        return MAIL
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return next((media for mark, media in _PICTURES if data.startswith(mark)), None)


def read(data: bytes, media: str, limits: Limits) -> Reading:
    """Raises Refused."""
    if not installed():
        raise unsupported(f"{_NAMES} can be read where Nightmill is installed with the extra 'parse', which it needs.")
    if data.startswith(b"PK"):
        archive.check(data, limits)
    result = _extracted(_with_references(data) if media == WORD else data, media)
    text = result.content.translate(_FROM_PRIVATE) if media == WORD else result.content
    if media == MAIL:
        text = html.unescape(text)
    found = markdown.read(text)
    facts = result.metadata
    return Reading(_unescaped(found.blocks), facts.get("title") or None, time=dates.first(*map(facts.get, _TIMES)))


def picture_text(data: bytes, media: str) -> str:
    """What Tesseract sees. Raises Refused."""
    return str(_extracted(data, media).content)


def sees() -> bool:
    """Whether there is a Tesseract, and what asks it."""
    return installed() and shutil.which("tesseract") is not None


def load() -> None:
    """Import kreuzberg for a process that may write nothing: its cache is an empty folder of this package."""
    os.environ["KREUZBERG_CACHE_DIR"] = str(Path(__file__).parent / "cache")
    importlib.import_module("kreuzberg")


def installed() -> bool:
    return importlib.util.find_spec("kreuzberg") is not None


def _extracted(data: bytes, media: str) -> Any:
    import kreuzberg

    picture = media.startswith("image/")
    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        output_format="markdown",
        max_concurrent_extractions=1,
        ocr=kreuzberg.OcrConfig(backend="tesseract") if picture else None,
    )
    try:
        return kreuzberg.extract_bytes_sync(data, media, config)
    except (kreuzberg.MissingDependencyError, kreuzberg.OCRError):
        raise unsupported("Pictures can be read where Tesseract is installed.") from None
    except kreuzberg.KreuzbergError:
        raise invalid("The file is damaged: it could not be read as what it says it is.") from None


def _unescaped(blocks: Iterator[Block]) -> Iterator[Block]:
    for block in blocks:
        if block.kind == "code":
            yield block
        else:
            name = None if block.name is None else _ESCAPED.sub(r"\1", block.name)
            yield Block(_ESCAPED.sub(r"\1", block.text), block.kind, block.level, block.page, name)


def _zip_kind(data: bytes) -> str:
    names = archive.names(data)
    for part, media in _PARTS.items():
        if part in names:
            return media
    declared = data[30 + 8 : 30 + 8 + 64]  # the first entry is `mimetype`, not packed: its text is right here
    for media in _MIMETYPES:
        if data[30:38] == b"mimetype" and declared.startswith(media.encode()):
            return media
    raise archive.damaged() if not names else unsupported("Archives can't be searched: upload the files in it.")


def _old_office(data: bytes) -> Refused:
    if _OLE_ENCRYPTED in data:
        return invalid("The file is encrypted: it can't be read without its password.")
    return unsupported("Old binary formats of Office can't be searched: save it as DOCX, PPTX or XLSX.")


def _is_mail(head: bytes, filename: str) -> bool:
    if _MAIL_HEADER.match(head) is None:
        return False
    headers = head.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    found = {name.lower() for name in _MAIL_HEADERS.findall(headers)}
    return len(found) >= (1 if PurePath(filename.lower()).suffix == ".eml" else _MAIL_SURE)


def _with_references(data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(packed, "w") as target:
        for info in source.infolist():
            if info.filename.endswith((".xml", ".rels")):
                target.writestr(info.filename, _REFERENCE.sub(_private, source.read(info)))
    return packed.getvalue()


def _private(match: re.Match[bytes]) -> bytes:
    character = html.unescape(match.group().decode("ascii"))
    code = ord(character) if len(character) == 1 else 0xFFFD
    return chr(_PRIVATE + code if chr(code) in "&<>\"'" else code).encode("utf-8", "replace")
