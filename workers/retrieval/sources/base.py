"""The port of places that documents come from, and what may be wrong with one."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

CHUNK: Final = 1 << 20
_NAME_LENGTH: Final = 200


class SourceUnavailable(Exception):
    """Say that the place as a whole cannot be read: nothing is known about any of its items."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ItemFailed(Exception):
    """Say that one item cannot be had now. What the store has of it stays."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ItemDeleted(Exception):
    """Say that the place has an item no more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An item of a place. Equal fingerprints mean equal content; without a fingerprint nothing is known."""

    key: str
    filename: str
    fingerprint: dict[str, Any] | None = None
    size: int = 0
    fault: ItemFailed | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the place said about the bytes that it gave."""

    fingerprint: dict[str, Any] | None
    filename: str


#: Takes the bytes of an item as they come. What it raises ends the fetching.
Take = Callable[[bytes], None]


class SourceReader(Protocol):
    """A place that documents come from."""

    def entries(self, most: int, look: Callable[[], None]) -> list[Entry]:
        """Return all items; `look` is called often, and may end it. Raises SourceUnavailable, also for more than
        `most`."""

    def fetch(self, entry: Entry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        """Give the bytes of an item to `take`; None where `known` is its fingerprint. Raises ItemFailed, ItemGone."""


def too_many(most: int) -> SourceUnavailable:
    return SourceUnavailable("too_many_items", f"The source has more than {most} items; nothing was brought in.")


def named(path: str) -> str:
    """Return the last part of a path as a printable file name that is not too long and has its ending."""
    base = "".join(filter(_shows, path.rstrip("/").rpartition("/")[2])).strip()
    stem, dot, ending = base.rpartition(".")
    if not stem or not re.fullmatch(r"[A-Za-z0-9]{1,16}", ending):
        stem, dot, ending = base, "", ""
    return f"{stem[:_NAME_LENGTH]}{dot}{ending}" if base.strip(".") else "document"


def _shows(character: str) -> bool:
    """Tell whether a character is visible: no control character, no end of line."""
    return character == " " or unicodedata.category(character)[0] not in "CZ"
