"""Read and write the items of a conversation in storage: immutable objects, of which the last one names the others.

    row ─▶ head {"before": [[path, bytes], …], "items": […]}
                    └─▶ segment: a head of before, with its items

An append writes a new head. It takes over the items of the old head while both are small; otherwise the old head
becomes a segment. So an append writes a bounded number of bytes. A conversation of an earlier version has one flat
object with the list of its items.
"""

from collections.abc import Iterator, Sequence

import msgspec

from jobs.ids import new_id
from jobs.platform.storage import Storage

FOLDER = "conversations"
#: Limit in bytes for a head that takes over the items of the former head.
SEGMENT_BYTES = 1 << 18


class ConversationSegment(msgspec.Struct, frozen=True, array_like=True):
    """An object with earlier items, and its size in bytes."""

    path: str
    size: int


class _Written(msgspec.Struct):
    """An object as it is stored."""

    before: list[ConversationSegment] = []
    items: list[msgspec.Raw] = []


class Head:
    """The last object of a conversation, which names all others."""

    def __init__(self, storage: Storage, path: str) -> None:
        """Read the head. Raises NotFound."""
        self._storage = storage
        self.path = path
        self.raw = read(storage, path)
        self.before = tuple(_decode(self.raw).before)

    @property
    def size(self) -> int:
        return len(self.raw)

    def objects(self, *, newest_first: bool = False) -> Iterator[tuple[str, bytes]]:
        """Yield the path and the bytes of each object, read one by one. Raises NotFound."""
        if newest_first:
            yield self.path, self.raw
        for segment in reversed(self.before) if newest_first else self.before:
            yield segment.path, read(self._storage, segment.path)
        if not newest_first:
            yield self.path, self.raw


def folder(conversation_id: str) -> str:
    return f"{FOLDER}/{conversation_id}"


def owner(path: str) -> str:
    """Return the id of the conversation that an object belongs to, by its path."""
    return path.split("/")[1].partition("-")[0]


def read(storage: Storage, path: str) -> bytes:
    """Return the bytes of an object. Raises NotFound."""
    with storage.reader(path) as handle:
        raw: bytes = handle.read()
    return raw


def items_in(raw: bytes) -> list[msgspec.Raw]:
    """Return the items of an object, undecoded."""
    return _decode(raw).items


def encode(before: Sequence[ConversationSegment], items: Sequence[msgspec.Raw]) -> bytes:
    return msgspec.json.encode(_Written(list(before), list(items)))


def new_path(conversation_id: str) -> str:
    """Return a new path for each object, so that two writers at once cannot overwrite each other."""
    return f"{folder(conversation_id)}/{new_id('')}"


def _decode(raw: bytes) -> _Written:
    if raw[:1] == b"[":  # written by an earlier version
        return _Written(items=msgspec.json.decode(raw, type=list[msgspec.Raw]))
    return msgspec.json.decode(raw, type=_Written)
