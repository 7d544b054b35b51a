"""The interface of vector databases for indexing and searching.

    Store ──1:n── document ──1:n── Entry: n, text, its vector
                  an attempt's key, "vsd_abc123.4"

Each attempt to index a file writes under a key of its own, and SQL decides which keys are visible: half-written and
superseded vectors are never shown, and are dropped by their key later. So a write is an append, no entry ever changes,
and no adapter needs no transaction over several calls.
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
    """The vector database cannot be reached, or fails for now: try again later."""


@dataclass(frozen=True, slots=True)
class Store:
    """The vectors of one model and one length that are searched together.

    For counting and dropping, `dimensions` may be 0 (unknown).
    """

    id: str
    project_id: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True, eq=False)  # arrays do not compare to a truth value
class VectorEntry:
    """One chunk.

    `digest` is the SHA-256, in hex, of the embedded text: the model's prompt, if it has one, and then `text`. `vector`
    has length 1; `meta` is JSON, opaque here.
    """

    document: str
    n: int
    text: str
    digest: str
    vector: Vector
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found. Scores compare only within one answer, except the cosines of `nearest`."""

    document: str
    n: int
    text: str
    meta: dict[str, Any]
    score: float


class Vectors(Protocol):
    """A vector database. Every call blocks and may come from any thread; a failure raises VectorsUnavailable.

    A vector of a wrong length raises ValueError; a store without writes is empty.
    """

    def write(self, store: Store, entries: Sequence[VectorEntry]) -> None:
        """Append entries durably. The same (document, n) twice may be one entry or two."""

    def find_vectors(self, store: Store, digests: Collection[str]) -> dict[str, Vector]:
        """Return the vectors of those texts that the store has already, so that nothing is embedded twice."""

    def drop(self, store: Store, documents: Collection[str]) -> int:
        """Drop documents, and return the number of entries. Missing ones are ignored. Bytes may stay until `erase`."""

    def erase(self, store: Store) -> None:
        """Erase dropped entries from the disk, as far as the database can be made to."""

    def drop_store(self, store: Store) -> None:
        """Drop the whole store; a missing one is not an error."""

    def nearest(self, store: Store, vector: Vector, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        """Return the nearest entries, best first, with cosine similarities. `documents` restricts the search."""

    def matching(self, store: Store, query: str, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        """Return matching entries by BM25, best first. Any text is a query; one without a word finds nothing."""

    def counts(self, store: Store) -> dict[str, int]:
        """Return the number of entries of each document."""

    def numbers(self, store: Store, document: str) -> list[int]:
        """Return the `n` of a document's entries, sorted."""

    def stores(self) -> list[str]:
        """Return the ids of all stores that were written to and not dropped."""

    def tend(self, store: Store) -> None:
        """Compact and index the store, unless another process is doing so. May be called at any time."""

    def check(self) -> None:
        """Check that the database can be read and written. Raises VectorsUnavailable."""

    def close(self) -> None: ...


MAX_QUERY = 10_000  # characters of a query that are searched for


def chunks(values: Collection[T], size: int) -> Iterator[list[T]]:
    """Return the values in lists of at most `size`."""
    left = iter(values)
    while some := list(islice(left, size)):
        yield some


def check_vector(store: Store, vector: Vector) -> Vector:
    """Return the vector as it is stored. Raises ValueError if it has another length or is not finite."""
    row = np.asarray(vector, dtype=np.float32)
    if row.shape != (store.dimensions,):
        raise ValueError(f"The vectors of {store.id} have {store.dimensions} dimensions, not {row.shape}.")
    if not np.isfinite(row).all():
        raise ValueError("A vector holds numbers only, none of them infinite.")
    return row


def words(query: str) -> str:
    """Return the searchable part of a query; empty if it has no word."""
    text = query[:MAX_QUERY].encode("utf-8", "replace").decode()  # replaces lone surrogates
    return text if any(character.isalnum() for character in text) else ""
