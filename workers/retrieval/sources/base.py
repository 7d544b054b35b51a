"""The interface of sources, and their errors."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

CHUNK: Final = 1 << 20
_NAME_LENGTH: Final = 200


class SourceUnavailable(Exception):
    """The source as a whole cannot be read: nothing is known about any of its items."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ItemFailed(Exception):
    """One item cannot be read now. The store keeps the version that it has."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ItemDeleted(Exception):
    """The source does not have the item any more."""


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """An item of a source. Equal fingerprints mean equal content; without a fingerprint nothing is known."""

    key: str
    filename: str
    fingerprint: dict[str, Any] | None = None
    size: int = 0
    fault: ItemFailed | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The source's description of an item whose bytes were fetched."""

    fingerprint: dict[str, Any] | None
    filename: str


#: Receives the bytes of an item as they arrive. An exception ends the download.
Take = Callable[[bytes], None]


class SourceReader(Protocol):
    """A source of documents."""

    def entries(self, limit: int, look: Callable[[], None]) -> list[SourceEntry]:
        """Return all items; `look` is called often and may raise. Raises SourceUnavailable, also for too many items."""

    def fetch(self, entry: SourceEntry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        """Pass an item's bytes to `take`; return None if `known` is its fingerprint. Raises ItemFailed, ItemDeleted."""


def too_many(limit: int) -> SourceUnavailable:
    return SourceUnavailable("too_many_items", f"The source has more than {limit} items; nothing was brought in.")


def display_name(path: str) -> str:
    """Return the last part of a path as a printable file name of limited length, with its extension."""
    base = "".join(filter(_shows, path.rstrip("/").rpartition("/")[2])).strip()
    stem, dot, ending = base.rpartition(".")
    if not stem or not re.fullmatch(r"[A-Za-z0-9]{1,16}", ending):
        stem, dot, ending = base, "", ""
    return f"{stem[:_NAME_LENGTH]}{dot}{ending}" if base.strip(".") else "document"


def _shows(character: str) -> bool:
    """Return whether a character is visible: no control character and no line end."""
    return character == " " or unicodedata.category(character)[0] not in "CZ"
