"""The parsed text of a file: parsing writes it to storage, indexing and the API read it.

One object for each version of a file in a vector store. Offsets count characters of `text`: `text[start:end]` is the
chunk, exactly.
"""

from typing import Final

import msgspec

from jobs.errors import NotFound
from jobs.platform.storage import Storage

FOLDER: Final = "documents"
PARTLY: Final = "partly:"


class Chunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of text with a vector of its own. `section` is its path of headings; `page` counts from 1.

    `language` is set if it differs from the document's.
    """

    start: int
    end: int
    tokens: int
    page: int | None = None
    section: tuple[str, ...] = ()
    language: str | None = None


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """The text of one file. `language` is an ISO 639-1 code, if known.

    `time` is when the file was changed or written, by its own statement: in UTC, to the second or to the day.

    `unread`: some pages are images, and no OCR was available.

    A document to be cut by meaning has `sentences` and no chunks: indexing cuts it, because that needs the embedding
    model.
    """

    text: str
    chunks: tuple[Chunk, ...]
    title: str | None = None
    language: str | None = None
    sentences: tuple[Chunk, ...] = ()
    time: str | None = None
    unread: bool = False

    def piece(self, n: int) -> str:
        return self.text[self.chunks[n].start : self.chunks[n].end]


def partly(recipe: str) -> str:
    """Mark the recipe of a version with unread pages: with OCR the recipe would differ."""
    return f"{PARTLY}{recipe[: -len(PARTLY)]}"


encode = msgspec.json.encode
decode = msgspec.json.Decoder(Document).decode


def path(store_id: str, version: str) -> str:
    return f"{folder(store_id)}/{version}.json"


def folder(store_id: str) -> str:
    return f"{FOLDER}/{store_id}"


def load(storage: Storage, store_id: str, version: str) -> Document | None:
    """Return a version's document; None if it does not exist.

    Raises: StorageUnavailable.
    """
    try:
        with storage.reader(path(store_id, version)) as handle:
            return decode(handle.read())
    except NotFound:
        return None
