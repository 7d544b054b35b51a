"""The port of places that documents come from, and what may be wrong with one."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

CHUNK: Final = 1 << 20
_NAME_LENGTH: Final = 200


class SourceAway(Exception):
    """The place as a whole cannot be read, or not as it should: of none of its items is anything known."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ItemFailed(Exception):
    """One item cannot be had now. What the store has of it stays."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class ItemGone(Exception):
    """The place says of an item that it is no more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An item of a place. Two entries with the same fingerprint have the same content; without one nobody knows."""

    key: str
    filename: str
    fingerprint: dict[str, Any] | None = None
    size: int = 0
    fault: ItemFailed | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was told about the bytes that were handed over."""

    fingerprint: dict[str, Any] | None
    filename: str


#: Takes the bytes of an item as they come. What it raises ends the fetching.
Take = Callable[[bytes], None]


class Place(Protocol):
    """Somewhere that documents are."""

    def entries(self, most: int, look: Callable[[], None]) -> list[Entry]:
        """All there are; `look` is called often, and may end it. Raises SourceAway, also where there are more."""

    def fetch(self, entry: Entry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        """The bytes of an item; None where they are those of the fingerprint `known`. Raises ItemFailed, ItemGone."""


def too_many(most: int) -> SourceAway:
    return SourceAway("too_many_items", f"The source has more than {most} items; nothing was brought in.")


def named(path: str) -> str:
    """The last part of a path as the name of a file: printable, and not too long, its ending kept."""
    base = "".join(filter(_shows, path.rstrip("/").rpartition("/")[2])).strip()
    stem, dot, ending = base.rpartition(".")
    if not stem or not re.fullmatch(r"[A-Za-z0-9]{1,16}", ending):
        stem, dot, ending = base, "", ""
    return f"{stem[:_NAME_LENGTH]}{dot}{ending}" if base.strip(".") else "document"


def _shows(character: str) -> bool:
    """No control character, nothing invisible, no end of line."""
    return character == " " or unicodedata.category(character)[0] not in "CZ"
