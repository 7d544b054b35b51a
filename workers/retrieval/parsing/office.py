"""Read Word, PowerPoint, Excel, OpenDocument, EPUB, e-mail, RTF and pictures by kreuzberg (the extra `parse`).

kreuzberg returns Markdown, so its text is read as Markdown is; the characters that it escaped are put back.

ZIP files of Office and EPUB are checked before a library may unpack them. Bombs declare less than they contain, contain
one stream under many names, nest archives, or expand only in the XML parser. So each entry is inflated here, in pieces
that are discarded, and counted against one budget.
"""

import html
import importlib
import importlib.util
import io
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, Final

from workers.retrieval.parsing import markdown
from workers.retrieval.parsing.blocks import Block, Reading, first_date
from workers.retrieval.parsing.contract import FileRefused, ParserLimits, invalid_file, unsupported_file

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
    """Return the media type, None for another format. Raises Refused for what is known not to be readable."""
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


def read(data: bytes, media: str, limits: ParserLimits) -> Reading:
    """Return the blocks of a file of the type `media`. Raises Refused."""
    if not is_installed():
        raise unsupported_file(
            f"{_NAMES} can be read where Nightmill is installed with the extra 'parse', which it needs."
        )
    if data.startswith(b"PK"):
        check_archive(data, limits)
    result = _extract(_with_references(data) if media == WORD else data, media)
    text = result.content.translate(_FROM_PRIVATE) if media == WORD else result.content
    if media == MAIL:
        text = html.unescape(text)
    reading = markdown.read(text)
    metadata = result.metadata
    return Reading(
        _unescape(reading.blocks), metadata.get("title") or None, time=first_date(*map(metadata.get, _TIMES))
    )


def picture_text(data: bytes, media: str) -> str:
    """Return what Tesseract sees. Raises Refused."""
    return str(_extract(data, media).content)


def sees() -> bool:
    """Tell whether pictures can be read: kreuzberg and Tesseract are there."""
    return is_installed() and shutil.which("tesseract") is not None


def load() -> None:
    """Import kreuzberg for a process that may write nothing: its cache is an empty folder of this package."""
    os.environ["KREUZBERG_CACHE_DIR"] = str(Path(__file__).parent / "cache")
    importlib.import_module("kreuzberg")


def is_installed() -> bool:
    return importlib.util.find_spec("kreuzberg") is not None


def _extract(data: bytes, media: str) -> Any:
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
        raise unsupported_file("Pictures can be read where Tesseract is installed.") from None
    except kreuzberg.KreuzbergError:
        raise invalid_file("The file is damaged: it could not be read as what it says it is.") from None


def _unescape(blocks: Iterator[Block]) -> Iterator[Block]:
    for block in blocks:
        if block.kind == "code":
            yield block
        else:
            name = None if block.name is None else _ESCAPED.sub(r"\1", block.name)
            yield Block(_ESCAPED.sub(r"\1", block.text), block.kind, block.level, block.page, name)


def _zip_kind(data: bytes) -> str:
    names = part_names(data)
    for part, media in _PARTS.items():
        if part in names:
            return media
    declared = data[30 + 8 : 30 + 8 + 64]  # the first entry is `mimetype`, not packed: its text is right here
    for media in _MIMETYPES:
        if data[30:38] == b"mimetype" and declared.startswith(media.encode()):
            return media
    raise archive_error() if not names else unsupported_file("Archives can't be searched: upload the files in it.")


def _old_office(data: bytes) -> FileRefused:
    if _OLE_ENCRYPTED in data:
        return invalid_file("The file is encrypted: it can't be read without its password.")
    return unsupported_file("Old binary formats of Office can't be searched: save it as DOCX, PPTX or XLSX.")


def _is_mail(head: bytes, filename: str) -> bool:
    if _MAIL_HEADER.match(head) is None:
        return False
    headers = head.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    names = {name.lower() for name in _MAIL_HEADERS.findall(headers)}
    return len(names) >= (1 if PurePath(filename.lower()).suffix == ".eml" else _MAIL_SURE)


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


# ── archives ──

ENTRIES: Final = 10_000
DEPTH: Final = 2  # a spreadsheet inside a document is ordinary, one inside that is not
EXPANSION: Final = 8  # times the text that is allowed: markup and pictures
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_LOCAL_MARK: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 0x1
_PIECE: Final = 1 << 16
_ENTITY: Final = re.compile(rb"<!ENTITY", re.IGNORECASE)
_XML: Final = (".xml", ".rels", ".xhtml", ".html", ".htm", ".opf", ".ncx", ".vml", ".svg")


class UnpackBudget:
    """The amount of data that may still be unpacked, from all nested archives together."""

    def __init__(self, limits: ParserLimits) -> None:
        self.left = EXPANSION * limits.text_bytes
        self.entries = ENTRIES

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise invalid_file("The file unpacks to more data than is allowed.")

    def open(self, entries: int) -> None:
        self.entries -= entries
        if self.entries < 0:
            raise invalid_file(f"The file is an archive of more than {ENTRIES} parts.")


def check_archive(data: bytes, limits: ParserLimits) -> None:
    """Check that a library may unpack this archive. Raises Refused."""
    try:
        _check_parts(data, UnpackBudget(limits), 0)
    except (zipfile.BadZipFile, zlib.error, struct.error, UnicodeDecodeError, NotImplementedError):
        raise archive_error() from None


def part_names(data: bytes) -> frozenset[str]:
    """Return the names of an archive's parts; none when it can't be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return frozenset(archive.namelist())
    except (zipfile.BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError):
        return frozenset()


def archive_error() -> FileRefused:
    return invalid_file("The file is damaged: its parts can't be unpacked.")


def _check_parts(data: bytes, budget: UnpackBudget, depth: int) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
    budget.open(len(infos))
    if sum(info.file_size for info in infos) > budget.left:
        budget.spend(budget.left + 1)
    _check_offsets(infos)
    for info in infos:
        _check_entry(data, info, budget, depth)


def _check_offsets(infos: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: one small stream counted a thousand times."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise invalid_file("The file is an archive whose parts overlap.")
        end = info.header_offset + _LOCAL.size + info.compress_size


def _check_entry(data: bytes, info: zipfile.ZipInfo, budget: UnpackBudget, depth: int) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise invalid_file("The file is encrypted: it can't be read without its password.")
    inner = _Inner(info)
    size = 0
    for piece in _inflate(data, info):
        budget.spend(len(piece))
        size += len(piece)
        inner.see(piece)
    if size != info.file_size:
        raise archive_error()
    if inner.archive is not None:
        if depth + 1 >= DEPTH:
            raise invalid_file("The file has archives inside of archives.")
        _check_parts(bytes(inner.archive), budget, depth + 1)


class _Inner:
    """The content of an entry: an archive, stored to be looked through, or XML that must not define entities."""

    def __init__(self, info: zipfile.ZipInfo) -> None:
        self.archive: bytearray | None = None
        self._is_xml = info.filename.lower().endswith(_XML)
        self._first = True
        self._tail = b""

    def see(self, piece: bytes) -> None:
        if self._first and piece.startswith(_LOCAL_MARK):
            self.archive = bytearray()
        self._first = False
        if self.archive is not None:
            self.archive += piece
        elif self._is_xml:
            self._look_for_entities(piece)

    def _look_for_entities(self, piece: bytes) -> None:
        written = self._tail + piece.replace(b"\x00", b"")  # UTF-16 is XML too
        if _ENTITY.search(written):
            raise invalid_file("The file defines XML entities, which is not allowed.")
        self._tail = written[-16:]


def _inflate(data: bytes, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the stream's real content, whatever its header declares."""
    mark, *_, name, extra = _LOCAL.unpack_from(data, info.header_offset)
    start = info.header_offset + _LOCAL.size + name + extra
    packed = memoryview(data)[start : start + info.compress_size]
    if mark != _LOCAL_MARK or len(packed) != info.compress_size:
        raise archive_error()
    if info.compress_type == zipfile.ZIP_STORED:
        yield from (bytes(packed[at : at + _PIECE]) for at in range(0, len(packed), _PIECE))
    elif info.compress_type == zipfile.ZIP_DEFLATED:
        yield from _inflate_stream(packed)
    else:
        raise archive_error()


def _inflate_stream(packed: memoryview) -> Iterator[bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    for at in range(0, len(packed), _PIECE):
        rest = bytes(packed[at : at + _PIECE])
        while rest and not stream.eof:
            yield stream.decompress(rest, _PIECE)
            rest = stream.unconsumed_tail
    yield stream.flush()
