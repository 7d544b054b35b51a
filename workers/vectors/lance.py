"""Vectors in LanceDB: embedded, one folder, any number of processes of this machine.

    write ──append──▶ rows without index ──tend──▶ compacted, indexed
                             └───────────┬──────────────┘
                          both are found by nearest and matching

    <root>/vs_abc.lance/     one table for each store; flock on the folder while a process tends it
           ├ data/           rows, a file for each append
           ├ _deletions/     which rows are deleted
           ├ _versions/      a commit each
           └ _indices/

Up to INDEXED_FROM rows, `nearest` compares with every vector, which is exact; `tend` indexes larger tables. Commits are
optimistic: a process that loses a race begins again, and so does one that reads a version that is cleaned up meanwhile.
LanceDB commits by renaming and never syncs, so a power failure would lose commits; `Tables.sync` makes them durable.
LanceDB starts threads of its own, so processes that use it are spawned, never forked.
"""

import json
import logging
import os
import random
import re
import shutil
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS, BTree, IvfSq
from lancedb.query import MatchQuery

from jobs.platform.locks import FileLock
from jobs.platform.storage import sync_path
from jobs.timings import Timings
from workers.vectors.base import Hit, Store, Vector, VectorEntry, VectorsUnavailable, check_vector, chunks, words

INDEXED_FROM: Final = 20_000  # rows; with fewer, comparing with all takes a few milliseconds
PROBES: Final = 32  # partitions of the index per search, about 8,000 vectors each
REFINE: Final = 4  # times the limit: candidates that are compared by their full vectors
KEEP: Final = timedelta(minutes=10)  # how long old versions are kept
_NO_TIME: Final = timedelta(milliseconds=1)  # LanceDB warns about 0; readers of an older version begin again
_IN_LIST: Final = 1000  # values in one condition of a DELETE or a query
_SHOWN: Final = ["document", "n", "text", "meta"]
_FOREIGN: Final = (RuntimeError, OSError, ValueError)  # types of LanceDB's errors
_LOST_RACE: Final = ("not found", "no such file", "conflict", "concurrent")
_SOURCE_LINE: Final = re.compile(r",? ?/\S+\.rs:\d+(:\d+)?")  # a line of the library's source in its messages

log = logging.getLogger(__name__)

T = TypeVar("T")


class LanceVectors:
    """The vector database in a folder."""

    def __init__(self, root: Path, timings: Timings = Timings()) -> None:
        self._root = root.absolute()
        self._patience = timings.vectors_retry
        self._tables = Tables(self._root)
        self._closing = threading.Event()

    def write(self, store: Store, entries: Sequence[VectorEntry]) -> None:
        if not entries:
            return
        vectors = np.stack([check_vector(store, entry.vector) for entry in entries])

        def append() -> None:
            table = self._tables.make(store)
            with self._tables.sync(store.id):
                table.add(_rows_of(table.schema, entries, vectors))

        self._repeat(store, append)

    def find_vectors(self, store: Store, digests: Collection[str]) -> dict[str, Vector]:
        vectors: dict[str, Vector] = {}
        for some in chunks(digests, _IN_LIST):
            nothing: dict[str, Vector] = {}
            vectors |= self._use_table(store, partial(_vectors, some, store.dimensions), nothing)
        return vectors

    def drop(self, store: Store, documents: Collection[str]) -> int:
        def delete(page: Collection[str], table: Any) -> int:
            with self._tables.sync(store.id):
                return int(table.delete(_within("document", page)).num_deleted_rows)

        return sum([self._use_table(store, partial(delete, page), 0) for page in chunks(documents, _IN_LIST)])

    def erase(self, store: Store) -> None:
        """Rewrite the rows that remain in files with deleted rows, because a file can only be deleted as a whole."""

        def work(table: Any) -> None:
            with self._tables.hold_lock(store.id), self._tables.sync(store.id):
                table.optimize(cleanup_older_than=_NO_TIME)
                for fragment in self._tables.fragments_to_rewrite(store.id):
                    rows = f"_rowid >= {fragment << 32} AND _rowid < {fragment + 1 << 32}"
                    table.update(where=rows, values_sql={"n": "n"})
                table.optimize(cleanup_older_than=_NO_TIME)

        self._use_table(store, work, None)

    def drop_store(self, store: Store) -> None:
        self._repeat(store, lambda: self._tables.drop(store.id))

    def nearest(self, store: Store, vector: Vector, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        vector_query = check_vector(store, vector)

        def search(table: Any) -> Any:
            query = table.search(vector_query, vector_column_name="vector").distance_type("cosine")
            return query.minimum_nprobes(PROBES).maximum_nprobes(0).refine_factor(REFINE)

        return [_hit(row, 1.0 - row["_distance"]) for row in self._search(store, search, "_distance", limit, documents)]

    def matching(self, store: Store, query: str, limit: int, documents: Collection[str] | None = None) -> list[Hit]:
        match = MatchQuery(words(query), "text")

        def search(table: Any) -> Any:
            return table.search(match, query_type="fts")

        return [_hit(row, row["_score"]) for row in self._search(store, search, "_score", limit, documents)]

    def counts(self, store: Store) -> dict[str, int]:
        return self._use_table(store, _count, {})

    def numbers(self, store: Store, document: str) -> list[int]:
        batches = self._rows(store, "document", [document], ["n"])
        return sorted(n for batch in batches for n in batch["n"].to_pylist())

    def stores(self) -> list[str]:
        return self._tables.names()

    def tend(self, store: Store) -> None:
        def work(table: Any) -> None:
            with self._tables.try_lock(store.id) as locked:
                if locked:
                    with self._tables.sync(store.id):
                        table.optimize(cleanup_older_than=KEEP)
                        _index(table)

        self._use_table(store, work, None)

    def check(self) -> None:
        try:
            self._tables.check()
        except _FOREIGN as error:
            raise self._unavailable(error) from error

    def close(self) -> None:
        self._closing.set()
        self._tables.close()

    def _search(
        self, store: Store, search: Callable[[Any], Any], score: str, limit: int, documents: Collection[str] | None
    ) -> list[dict[str, Any]]:
        def work(table: Any) -> list[dict[str, Any]]:
            query = search(table).select([*_SHOWN, score]).limit(limit)
            if documents is not None:
                query = query.where(_within("document", documents))
            rows: list[dict[str, Any]] = query.to_arrow().to_pylist()
            return rows

        return self._use_table(store, work, []) if limit > 0 and (documents is None or documents) else []

    def _rows(self, store: Store, column: str, values: Collection[str], columns: list[str]) -> list[Any]:
        """Return the table's rows with one of these values, in batches."""

        def work(table: Any) -> list[Any]:
            query = table.search().where(_within(column, values)).select(columns).limit(None)
            return list(query.to_batches())

        return self._use_table(store, work, [])

    def _use_table(self, store: Store, work: Callable[[Any], T], nothing: T) -> T:
        """Run `work` with the store's table; return `nothing` if there is none."""

        def once() -> T:
            table = self._tables.find(store)
            return nothing if table is None else work(table)

        return self._repeat(store, once)

    def _repeat(self, store: Store, work: Callable[[], T]) -> T:
        """Repeat `work` until it wins the race against other processes; a lost race has changed nothing."""
        deadline = time.monotonic() + self._patience
        delay = 0.01
        while True:
            try:
                return work()
            except _FOREIGN as error:
                if not _is_foreign(error):
                    raise
                if not _is_lost_race(error) or time.monotonic() > deadline or self._closing.is_set():
                    raise self._unavailable(error) from error
                log.info("vectors.again", extra={"store": store.id, "reason": str(self._unavailable(error))})
            self._tables.forget(store.id)
            self._closing.wait(delay * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, so that two processes do not collide again)
            delay = min(delay * 2, 1.0)

    def _unavailable(self, error: Exception) -> VectorsUnavailable:
        """Return the error without paths of this machine or of the library's build."""
        reason = _SOURCE_LINE.sub("", str(error)).replace(str(self._root), "").replace(str(self._root).lstrip("/"), "")
        return VectorsUnavailable(f"The vector store fails: {reason}")


def _index(table: Any) -> None:
    """Create the indexes that a table of this size needs and lacks."""
    indexed = {column for index in table.list_indices() for column in index.columns}
    needed: dict[str, Any] = {"text": WORDS}
    if table.count_rows() >= INDEXED_FROM:
        needed |= {"document": BTree(), "digest": BTree(), "vector": IvfSq(distance_type="cosine")}
    for column in needed.keys() - indexed:
        table.create_index(column, config=needed[column])


def _rows_of(schema: Any, entries: Sequence[VectorEntry], vectors: Vector) -> Any:
    columns = {
        "document": [entry.document for entry in entries],
        "n": [entry.n for entry in entries],
        "text": [entry.text for entry in entries],
        "digest": [entry.digest for entry in entries],
        "meta": [json.dumps(entry.meta) for entry in entries],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    return pa.table(columns, schema=schema)


def _matrix(column: Any, dimensions: int) -> Vector:
    flat: Vector = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dimensions).copy()  # writable, and without a reference to the batch


def _vectors(digests: Collection[str], dimensions: int, table: Any) -> dict[str, Vector]:
    """Return one vector for each digest. A text may occur very often: read and keep no more than necessary."""
    vectors: dict[str, Vector] = {}
    query = table.search().where(_within("digest", digests)).select(["digest", "vector"]).limit(None)
    for rows in query.to_batches():
        names = rows["digest"].to_pylist()
        new = [at for at, name in enumerate(names) if name not in vectors]
        matrix = _matrix(rows["vector"], dimensions) if new else ()
        vectors |= {names[at]: np.array(matrix[at]) for at in new}
        if len(vectors) == len(set(digests)):
            break
    return vectors


def _count(table: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for batch in table.search().select(["document"]).limit(None).to_batches():
        for pair in batch["document"].value_counts().to_pylist():
            counts[pair["values"]] += pair["counts"]
    return dict(counts)


def _hit(row: dict[str, Any], score: float) -> Hit:
    return Hit(row["document"], row["n"], row["text"], json.loads(row["meta"]), score)


def _within(column: str, values: Collection[str]) -> str:
    quoted = ("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({', '.join(quoted)})"


def _is_foreign(error: Exception) -> bool:
    """Return whether an error is LanceDB's: its ValueErrors say that a table was not found, others are our own."""
    return not isinstance(error, ValueError) or "was not found" in str(error)


def _is_lost_race(error: Exception) -> bool:
    """Return whether another process committed first, or dropped or cleaned up the version that was read."""
    message = str(error).lower()
    return any(words in message for words in _LOST_RACE)


# The tables of one folder.

OPEN_TABLES: Final = 64
INDEX_CACHE: Final = 256 << 20  # bytes; LanceDB's own default is 6 GB
METADATA_CACHE: Final = 64 << 20
COMMITS: Final = 128  # commits of one session
_NAME: Final = re.compile(r"vsi?_[0-9a-zA-Z]+")  # the id of a store, or of another of its indexes
_SUFFIX: Final = ".lance"
_DROPPED: Final = ".dropped-"
_COMMITTED: Final = ("data", "_deletions", "_transactions", "_versions", "_indices")
_MTIME_SLACK: Final = 1.0  # seconds: file times come from a coarser clock than `time.time`

#: For any language: ICU words where no spaces divide them, no stemming, no stop words.
WORDS: Final = FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=False, max_token_length=128)


class Tables:
    """The tables of one folder, a bounded number of them open. Each read sees the commits of other processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._database: Any = None
        self._commits = 0
        self._open: OrderedDict[str, Any] = OrderedDict()

    def find(self, store: Store) -> Any | None:
        """Return the table of a store, or None.

        Raises: ValueError, if its vectors have another length.
        """
        path = self.path(store.id)
        with self._lock:
            table = self._open.get(store.id)
            if table is not None:
                self._open.move_to_end(store.id)
                return _check_length(table, store)
        if not (path / "_versions").is_dir():
            return None
        return self._keep(store, self._connection().open_table(store.id))

    def make(self, store: Store) -> Any:
        """Return the table of a store, created if necessary.

        Of several processes one creates it, and the others wait.
        """
        table = self.find(store)
        if table is not None:
            return table
        self._root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root, folder=True).hold(), self.sync(store.id):
            table = self._connection().create_table(store.id, schema=_schema(store.dimensions), exist_ok=True)
            if not table.list_indices():
                table.create_index("text", config=WORDS)
        _sync_if_there(self._root)
        return self._keep(store, table)

    def forget(self, name: str) -> None:
        """Close a table that was dropped or became unreadable, so that it is opened anew."""
        with self._lock:
            self._open.pop(name, None)

    def drop(self, name: str) -> None:
        """Hide the table at once and delete it, together with what a dying process left of earlier ones."""
        path = self.path(name)
        self.forget(name)
        if path.exists():
            with FileLock(self._root, folder=True).hold(), suppress(FileNotFoundError):
                path.rename(self._root / f"{_DROPPED}{uuid.uuid4().hex}")
        for dropped in self._root.glob(f"{_DROPPED}*"):
            with suppress(FileNotFoundError):  # another process removes it too
                shutil.rmtree(dropped)

    def names(self) -> list[str]:
        """Return the stores with a table, those included that a write recreated during a drop."""
        names = (path.name.removesuffix(_SUFFIX) for path in self._root.glob(f"*{_SUFFIX}"))
        return sorted(name for name in names if _NAME.fullmatch(name))

    def check(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{self._root.name} can't be written")
        self._connection()

    def close(self) -> None:
        with self._lock:
            self._open.clear()
            self._database = None

    @contextmanager
    def sync(self, name: str) -> Iterator[None]:
        """Make everything durable that is committed within."""
        since = time.time() - _MTIME_SLACK
        yield
        for part in _COMMITTED:
            _sync_new(self.path(name) / part, since)
        _sync_if_there(self.path(name))
        self._renew()

    @contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        """Take the table's lock if it is free; yield whether it was taken."""
        with FileLock(self.path(name), folder=True).hold(wait=False) as alone:
            yield alone

    @contextmanager
    def hold_lock(self, name: str) -> Iterator[None]:
        """Take the table's lock, and wait for its holder."""
        with FileLock(self.path(name), folder=True).hold():
            yield

    def fragments_to_rewrite(self, name: str) -> list[int]:
        """Return the fragments with deleted rows, in any version that is kept: `_deletions/<fragment>-…`."""
        fragments = (path.name.partition("-")[0] for path in (self.path(name) / "_deletions").glob("*-*"))
        return sorted({int(fragment) for fragment in fragments if fragment.isdigit()})

    def path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' is not the id of a store.")
        return self._root / f"{name}{_SUFFIX}"

    def _connection(self) -> Any:
        with self._lock:
            if self._database is None:
                session = lancedb.Session(INDEX_CACHE, METADATA_CACHE)
                self._database = lancedb.connect(self._root, session=session, read_consistency_interval=timedelta(0))
            return self._database

    def _renew(self) -> None:
        """Open a new session after many commits: LanceDB keeps about 80 kB of each commit in its session."""
        with self._lock:
            self._commits += 1
            if self._commits >= COMMITS:
                self._commits, self._database = 0, None
                self._open.clear()

    def _keep(self, store: Store, table: Any) -> Any:
        _check_length(table, store)
        with self._lock:
            self._open[store.id] = table
            while len(self._open) > OPEN_TABLES:
                self._open.popitem(last=False)
        return table


def _check_length(table: Any, store: Store) -> Any:
    length = table.schema.field("vector").type.list_size
    if store.dimensions and length != store.dimensions:
        raise ValueError(f"The vectors of {store.id} have {length} dimensions, not {store.dimensions}.")
    return table


def _schema(dimensions: int) -> Any:
    columns = {
        "document": pa.string(),
        "n": pa.int32(),
        "text": pa.string(),
        "digest": pa.string(),
        "meta": pa.string(),
        "vector": pa.list_(pa.float32(), dimensions),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def _sync_new(folder: Path, since: float) -> None:
    """Sync all files below that were written since, then the folders that name them."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    new = [entry for entry in entries if _modified_at(entry) >= since]
    for entry in new:
        if entry.is_dir(follow_symlinks=False):
            _sync_new(Path(entry), since)
        else:
            _sync_if_there(Path(entry))
    if new:
        _sync_if_there(folder)


def _modified_at(entry: "os.DirEntry[str]") -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # cleaned up meanwhile
        return float("-inf")


def _sync_if_there(path: Path) -> None:
    with suppress(FileNotFoundError):  # dropped or cleaned up meanwhile: nothing to sync
        sync_path(path)
