"""ZIP files of Office and EPUB, looked through before a library may unpack them.

Bombs declare less than they hold, hold one stream under many names, hold archives of archives, or expand only in the
XML parser. So each entry is inflated here, in pieces that are thrown away, and counted against one budget.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Final

from workers.retrieval.parsing.contract import Limits, Refused, invalid

ENTRIES: Final = 10_000
DEPTH: Final = 2  # a spreadsheet inside a document is ordinary, one inside that is not
EXPANSION: Final = 8  # times the text that is allowed: markup and pictures
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_LOCAL_MARK: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 0x1
_PIECE: Final = 1 << 16
_ENTITY: Final = re.compile(rb"<!ENTITY", re.IGNORECASE)
_XML: Final = (".xml", ".rels", ".xhtml", ".html", ".htm", ".opf", ".ncx", ".vml", ".svg")


class Budget:
    """What may still be unpacked, in all archives inside one another together."""

    def __init__(self, limits: Limits) -> None:
        self.left = EXPANSION * limits.text_bytes
        self.entries = ENTRIES

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise invalid("The file unpacks to more data than is allowed.")

    def open(self, entries: int) -> None:
        self.entries -= entries
        if self.entries < 0:
            raise invalid(f"The file is an archive of more than {ENTRIES} parts.")


def check(data: bytes, limits: Limits) -> None:
    """Raises Refused."""
    try:
        _check(data, Budget(limits), 0)
    except (zipfile.BadZipFile, zlib.error, struct.error, UnicodeDecodeError, NotImplementedError):
        raise damaged() from None


def names(data: bytes) -> frozenset[str]:
    """Of its parts; empty when it can't be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return frozenset(archive.namelist())
    except (zipfile.BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError):
        return frozenset()


def damaged() -> Refused:
    return invalid("The file is damaged: its parts can't be unpacked.")


def _check(data: bytes, budget: Budget, depth: int) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
    budget.open(len(infos))
    if sum(info.file_size for info in infos) > budget.left:
        budget.spend(budget.left + 1)
    _check_places(infos)
    for info in infos:
        _check_entry(data, info, budget, depth)


def _check_places(infos: list[zipfile.ZipInfo]) -> None:
    """Entries that share bytes: one small stream counted a thousand times."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise invalid("The file is an archive whose parts overlap.")
        end = info.header_offset + _LOCAL.size + info.compress_size


def _check_entry(data: bytes, info: zipfile.ZipInfo, budget: Budget, depth: int) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise invalid("The file is encrypted: it can't be read without its password.")
    inner = _Inner(info)
    size = 0
    for piece in _inflated(data, info):
        budget.spend(len(piece))
        size += len(piece)
        inner.see(piece)
    if size != info.file_size:
        raise damaged()
    if inner.archive is not None:
        if depth + 1 >= DEPTH:
            raise invalid("The file has archives inside of archives.")
        _check(bytes(inner.archive), budget, depth + 1)


class _Inner:
    """What is in an entry: an archive, kept to be looked through, or XML that must not define entities."""

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
            raise invalid("The file defines XML entities, which is not allowed.")
        self._tail = written[-16:]


def _inflated(data: bytes, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """What the stream really holds, whatever its header says."""
    mark, *_, name, extra = _LOCAL.unpack_from(data, info.header_offset)
    start = info.header_offset + _LOCAL.size + name + extra
    packed = memoryview(data)[start : start + info.compress_size]
    if mark != _LOCAL_MARK or len(packed) != info.compress_size:
        raise damaged()
    if info.compress_type == zipfile.ZIP_STORED:
        yield from (bytes(packed[at : at + _PIECE]) for at in range(0, len(packed), _PIECE))
    elif info.compress_type == zipfile.ZIP_DEFLATED:
        yield from _deflated(packed)
    else:
        raise damaged()


def _deflated(packed: memoryview) -> Iterator[bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    for at in range(0, len(packed), _PIECE):
        rest = bytes(packed[at : at + _PIECE])
        while rest and not stream.eof:
            yield stream.decompress(rest, _PIECE)
            rest = stream.unconsumed_tail
    yield stream.flush()
