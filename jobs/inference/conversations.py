"""Where the items of a conversation lie in storage: in immutable objects, the last of which names the others.

    row ─▶ head {"before": [[path, bytes], …], "items": […]}
                    └─▶ segment: a head of before, with its items

To append is to write a new head. It takes over the items of the old head while both are small; otherwise the old head
becomes a segment. So what an append writes does not grow with the conversation. A conversation that an earlier version
wrote has one flat object, which is the list of its items.
"""

from collections.abc import Iterator, Sequence

import msgspec

from jobs.ids import new_id
from jobs.platform.storage import Storage

FOLDER = "conversations"
#: Bytes of a head that takes over the items of the one before.
SEGMENT_BYTES = 1 << 18


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """An object with earlier items, and its size in bytes."""

    path: str
    size: int


class _Written(msgspec.Struct):
    """An object as it is stored."""

    before: list[Segment] = []
    items: list[msgspec.Raw] = []


class Head:
    """The last object of a conversation, and through it all others."""

    def __init__(self, storage: Storage, path: str) -> None:
        """Read it. Raises NotFound."""
        self._storage = storage
        self.path = path
        self.raw = read(storage, path)
        self.before = tuple(_written(self.raw).before)

    @property
    def size(self) -> int:
        return len(self.raw)

    def objects(self, *, newest_first: bool = False) -> Iterator[tuple[str, bytes]]:
        """The path and the bytes of each object, each read when it is asked for. Raises NotFound."""
        if newest_first:
            yield self.path, self.raw
        for segment in reversed(self.before) if newest_first else self.before:
            yield segment.path, read(self._storage, segment.path)
        if not newest_first:
            yield self.path, self.raw


def folder(conversation_id: str) -> str:
    return f"{FOLDER}/{conversation_id}"


def owner(path: str) -> str:
    """The id of the conversation that an object belongs to, by its path."""
    return path.split("/")[1].partition("-")[0]


def read(storage: Storage, path: str) -> bytes:
    """The bytes of an object. Raises NotFound."""
    with storage.reader(path) as handle:
        raw: bytes = handle.read()
    return raw


def items_in(raw: bytes) -> list[msgspec.Raw]:
    """The items of an object, not decoded."""
    return _written(raw).items


def encode(before: Sequence[Segment], items: Sequence[msgspec.Raw]) -> bytes:
    return msgspec.json.encode(_Written(list(before), list(items)))


def new_path(conversation_id: str) -> str:
    """A path of its own for each object: two writers at once must not write over each other."""
    return f"{folder(conversation_id)}/{new_id('')}"


def _written(raw: bytes) -> _Written:
    if raw[:1] == b"[":  # of an earlier version
        return _Written(items=msgspec.json.decode(raw, type=list[msgspec.Raw]))
    return msgspec.json.decode(raw, type=_Written)
