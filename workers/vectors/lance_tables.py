"""LanceDB's tables in one folder: opened, made, dropped, and written through to the disk.

    <root>/vs_abc.lance/     one table for each store; flock on the folder: somebody tends it
           ├ data/           rows, a file for each append
           ├ _deletions/     which of them went
           ├ _versions/      a commit each
           └ _indices/

LanceDB commits by renaming and never syncs: what it has committed would be lost with the power. `synced` makes it
durable. It starts threads of its own: processes that use it are spawned, never forked.
"""

import fcntl
import os
import re
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import lancedb
import pyarrow as pa
from lancedb.index import FTS

from workers.vectors.base import Store

OPEN_TABLES: Final = 64
INDEX_CACHE: Final = 256 << 20  # bytes; LanceDB's own default is 6 GB
METADATA_CACHE: Final = 64 << 20
COMMITS: Final = 128  # of one session
_NAME: Final = re.compile(r"vsi?_[0-9a-zA-Z]+")  # a store's, or of another index of one
_SUFFIX: Final = ".lance"
_DROPPED: Final = ".dropped-"
_COMMITTED: Final = ("data", "_deletions", "_transactions", "_versions", "_indices")
_MTIME_SLACK: Final = 1.0  # seconds: a file's time comes from a coarser clock than ours

#: Any language: dictionary-based words where no spaces divide them, no stemming, no stop words.
WORDS: Final = FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=False, max_token_length=128)


class Tables:
    """A bounded number of them is open at a time; each looks for what other processes committed before it reads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._database: Any = None
        self._commits = 0
        self._open: OrderedDict[str, Any] = OrderedDict()

    def find(self, store: Store) -> Any | None:
        """The table of a store, or None. Raises ValueError when its vectors have another length."""
        path = self.path(store.id)
        with self._lock:
            table = self._open.get(store.id)
            if table is not None:
                self._open.move_to_end(store.id)
                return _fitting(table, store)
        if not (path / "_versions").is_dir():
            return None
        return self._keep(store, self._connection().open_table(store.id))

    def make(self, store: Store) -> Any:
        """The table of a store. Several processes may make it at once: one does, the others wait for it."""
        table = self.find(store)
        if table is not None:
            return table
        self._root.mkdir(parents=True, exist_ok=True)
        with _locked(self._root, fcntl.LOCK_EX), self.synced(store.id):
            table = self._connection().create_table(store.id, schema=_schema(store.dimensions), exist_ok=True)
            if not table.list_indices():
                table.create_index("text", config=WORDS)
        _sync(self._root)
        return self._keep(store, table)

    def forget(self, name: str) -> None:
        """It was dropped, or has become unreadable: open it anew the next time."""
        with self._lock:
            self._open.pop(name, None)

    def drop(self, name: str) -> None:
        """Out of sight at once; what a process that died left of an earlier one goes too."""
        path = self.path(name)
        self.forget(name)
        if path.exists():
            with _locked(self._root, fcntl.LOCK_EX), suppress(FileNotFoundError):
                path.rename(self._root / f"{_DROPPED}{uuid.uuid4().hex}")
        for gone in self._root.glob(f"{_DROPPED}*"):
            with suppress(FileNotFoundError):  # another process removes it too
                shutil.rmtree(gone)

    def names(self) -> list[str]:
        """Also of what a write left that lost against a drop."""
        found = (path.name.removesuffix(_SUFFIX) for path in self._root.glob(f"*{_SUFFIX}"))
        return sorted(name for name in found if _NAME.fullmatch(name))

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
    def synced(self, name: str) -> Iterator[None]:
        """What is committed within is on the disk afterwards."""
        since = time.time() - _MTIME_SLACK
        yield
        for part in _COMMITTED:
            _sync_new(self.path(name) / part, since)
        _sync(self.path(name))
        self._renew()

    @contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Whether nobody else tends this table; if so, nobody else does until the end."""
        try:
            with _locked(self.path(name), fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield True
        except BlockingIOError:
            yield False

    @contextmanager
    def tending(self, name: str) -> Iterator[None]:
        """The same, after whoever tends it now."""
        with _locked(self.path(name), fcntl.LOCK_EX):
            yield

    def deleted_from(self, name: str) -> list[int]:
        """The fragments that have deleted rows, in any version that is kept: `_deletions/<fragment>-…`."""
        found = (path.name.partition("-")[0] for path in (self.path(name) / "_deletions").glob("*-*"))
        return sorted({int(fragment) for fragment in found if fragment.isdigit()})

    def path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no store's id.")
        return self._root / f"{name}{_SUFFIX}"

    def _connection(self) -> Any:
        with self._lock:
            if self._database is None:
                session = lancedb.Session(INDEX_CACHE, METADATA_CACHE)
                self._database = lancedb.connect(self._root, session=session, read_consistency_interval=timedelta(0))
            return self._database

    def _renew(self) -> None:
        """Of each commit LanceDB keeps some 80 kB for as long as its session lives. Whoever is at a table goes on."""
        with self._lock:
            self._commits += 1
            if self._commits >= COMMITS:
                self._commits, self._database = 0, None
                self._open.clear()

    def _keep(self, store: Store, table: Any) -> Any:
        _fitting(table, store)
        with self._lock:
            self._open[store.id] = table
            while len(self._open) > OPEN_TABLES:
                self._open.popitem(last=False)
        return table


def _fitting(table: Any, store: Store) -> Any:
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


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _sync_new(folder: Path, since: float) -> None:
    """Every file below that was written since, then the folders that name it."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    new = [entry for entry in entries if _written(entry) >= since]
    for entry in new:
        if entry.is_dir(follow_symlinks=False):
            _sync_new(Path(entry), since)
        else:
            _sync(Path(entry))
    if new:
        _sync(folder)


def _written(entry: "os.DirEntry[str]") -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # cleaned up meanwhile
        return float("-inf")


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # dropped or cleaned up meanwhile: there is nothing to keep
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
