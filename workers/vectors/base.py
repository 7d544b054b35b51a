"""What indexing and searching need of a vector store.

    Store ──1:n── document ──1:n── Entry: n, text, its vector
                  an attempt's key, "vsd_abc123.4"

Every attempt to index a file writes under a key of its own, and the database says which keys can be seen: what is half
written or superseded is never shown, and is dropped by its key later. So a write is an append, no entry is ever
changed, and an adapter owes nobody a transaction over several calls.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Vector: TypeAlias = npt.NDArray[np.float32]


class VectorsUnavailable(Exception):
    """The vector store can't be reached, or fails for now: come back later."""


@dataclass(frozen=True, slots=True)
class Store:
    """The vectors of one model, all of one length, that are searched together.

    Whoever only counts and drops need not know the length: 0.
    """

    id: str
    project_id: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to a truth value
class Entry:
    """One chunk. `digest` is the SHA-256 in hex of what was embedded: of the text, behind the model's prompt if it has
    one. `vector` has length 1; `meta` is JSON, opaque here.
    """

    document: str
    n: int
    text: str
    digest: str
    vector: Vector
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found. Scores compare within one answer only, unless they are of `nearest`: cosine."""

    document: str
    n: int
    text: str
    meta: dict[str, Any]
    score: float


class Vectors(Protocol):
    """The port. Every call blocks and may come from any thread; what fails for now raises VectorsUnavailable.

    A vector that is not as long as its store's are raises ValueError; a store that nobody has written to is empty.
    """

    def write(self, store: Store, entries: Sequence[Entry]) -> None:
        """Append; durable when it returns. Whether the same (document, n) twice is one entry or two is not said."""

    def known(self, store: Store, digests: Collection[str]) -> dict[str, Vector]:
        """The vectors of those texts that the store has already, so that nothing is embedded twice."""

    def drop(self, store: Store, documents: Collection[str]) -> int:
        """How many entries went; what is not there is no error. Their bytes may stay until `erase`."""

    def erase(self, store: Store) -> None:
        """Let go of what was dropped, also on the disk, as far as the store can be made to."""

    def drop_store(self, store: Store) -> None:
        """All of it; what is not there is no error."""

    def nearest(self, store: Store, vector: Vector, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        """Best first, by cosine similarity, which is the score. `documents`: look only at those."""

    def matching(self, store: Store, query: str, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        """Best first, by BM25. Any text is a query; one without a word finds nothing."""

    def counts(self, store: Store) -> dict[str, int]:
        """Entries by document, of the whole store."""

    def numbers(self, store: Store, document: str) -> list[int]:
        """The `n` of a document's entries, sorted."""

    def stores(self) -> list[str]:
        """The ids of all stores that have been written to and not dropped."""

    def tend(self, store: Store) -> None:
        """Compact and index. May be called at any time; where another process does it already, it returns."""

    def check(self) -> None:
        """Raises VectorsUnavailable when nothing can be written or read."""

    def close(self) -> None: ...


LONGEST_QUERY = 10_000  # characters that are looked for; nobody's question is longer


def chunks(values: Collection[T], size: int) -> Iterator[list[T]]:
    """Return the values in lists of at most `size`."""
    left = iter(values)
    while some := list(islice(left, size)):
        yield some


def checked(store: Store, vector: Vector) -> Vector:
    """The vector as it is kept. Raises ValueError when it is no vector of this store."""
    row = np.asarray(vector, dtype=np.float32)
    if row.shape != (store.dimensions,):
        raise ValueError(f"The vectors of {store.id} have {store.dimensions} dimensions, not {row.shape}.")
    if not np.isfinite(row).all():
        raise ValueError("A vector holds numbers only, none of them infinite.")
    return row


def words(query: str) -> str:
    """What can be looked for in a query; empty when it has no word."""
    text = query[:LONGEST_QUERY].encode("utf-8", "replace").decode()  # half of a surrogate pair is no text
    return text if any(character.isalnum() for character in text) else ""
