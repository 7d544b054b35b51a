"""The storage of bytes: a folder, or any fsspec URL (S3). Paths are relative, with `/`.

Every visible object is whole: a writer's bytes appear under their name only when it closes without an error, after
fsync of file and folder. Rows that point to a path are committed after that, so a crash leaves at worst a file that no
row points to.
"""

import errno
import io
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from jobs.errors import NotFound, StorageFull, StorageUnavailable
from jobs.logs import Seldom
from jobs.platform import failures

CHUNK = 1 << 20
_AHEAD = 8 << 20  # bytes that are fetched of an object at once, as somebody reads on; fifty by default
_TEMPORARY = ".partial-"
_MAGIC = frozenset("*?[]")
#: Libraries whose own errors mean that an object store does not answer, or not as it should.
CLIENTS = frozenset({"botocore", "aiobotocore", "aiohttp"})
#: Of S3: long enough for a slow answer, short enough that a worker gives back what it can't store within its lease.
PATIENCE = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 3, "mode": "standard"}}

_NO_INODES = "The server has no free inodes: its file system takes no more files, whatever their size."

_unavailable = Seldom(logging.getLogger(__name__), "storage_unavailable")


class Storage(Protocol):
    """The port. A missing path raises NotFound, a full disk StorageFull, an unreachable storage StorageUnavailable."""

    def put(self, path: str, data: bytes) -> None:
        """Write one small object durably."""

    def writer(self, path: str) -> Any:
        """Return a context manager with `.write(bytes)`; the object appears at a clean exit, durable."""

    def reader(self, path: str, offset: int = 0) -> Any:
        """Return a context manager with `.read(n)` and line iteration, from `offset`."""

    def piece(self, path: str, offset: int, length: int) -> bytes:
        """Return the bytes of a range; no more are fetched."""

    def size(self, path: str) -> int: ...

    def delete(self, path: str) -> None:
        """Remove an object or everything under a folder; a missing one is not an error.

        Raises ValueError for a name that is neither.
        """

    def walk(self, prefix: str) -> Iterator[str]:
        """Yield the paths of all objects below a folder, in any order, as they are found: there may be a million."""

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all objects below a folder at once, in order."""

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the names of the folders that are directly in one, as they are found."""

    def sweep(self, prefix: str, before: float) -> Iterator[bool]:
        """Remove unfinished files of dead writers, untouched since `before`; yield for each file whether it was one."""

    def free(self) -> int | None:
        """Return the free bytes, or None where that means nothing. Raises StorageFull where no file can be made."""


@dataclass(frozen=True, slots=True)
class Space:
    """The free part of a file system: bytes, and inodes, which are None where their number has no limit."""

    bytes: int
    inodes: int | None


def space_at(path: Path) -> Space:
    """Return what is free for this user in the file system of an existing `path`."""
    stat = os.statvfs(path)
    return Space(stat.f_bavail * stat.f_frsize, stat.f_favail if stat.f_files else None)


class DiskStorage:
    """A folder of this machine (or a shared file system)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, data: bytes) -> None:
        with self.writer(path) as handle:
            handle.write(data)

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        target = self._at(path)
        with _our_errors(path):
            temporary = target.with_name(_TEMPORARY + uuid.uuid4().hex)
            try:
                with _create(temporary) as handle:
                    yield handle
                    handle.flush()
                    os.fsync(handle.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)  # there only if something failed
            sync_path(target.parent)

    @contextmanager
    def reader(self, path: str, offset: int = 0) -> Iterator[BinaryIO]:
        with _our_errors(path), self._at(path).open("rb", buffering=CHUNK) as handle:
            handle.seek(offset)
            yield handle

    def piece(self, path: str, offset: int, length: int) -> bytes:
        with self.reader(path, offset) as handle:
            return handle.read(length)

    def size(self, path: str) -> int:
        with _our_errors(path):
            return self._at(path).stat().st_size

    def delete(self, path: str) -> None:
        _check_name(path)
        target = self._at(path)
        with _our_errors(path):
            if target.is_dir():
                shutil.rmtree(target, onerror=_unless_missing)
            else:
                target.unlink(missing_ok=True)

    def walk(self, prefix: str) -> Iterator[str]:
        with _our_errors(prefix):
            for entry in _files_in(self._at(prefix)):
                path = Path(entry.path).relative_to(self.root).as_posix()
                if _is_name(path) and not entry.name.startswith(_TEMPORARY):
                    yield path

    def list(self, prefix: str) -> list[str]:
        return sorted(self.walk(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        with _our_errors(prefix):
            for entry in _entries(self._at(prefix)):
                if _is_name(entry.name) and entry.is_dir():
                    yield entry.name

    def sweep(self, prefix: str, before: float) -> Iterator[bool]:
        with _our_errors(prefix):
            for entry in _files_in(self._at(prefix)):
                yield entry.name.startswith(_TEMPORARY) and _removed_if_old(entry, before)

    def free(self) -> int | None:
        if not self.root.exists():
            with _our_errors(""):
                _make_folder(self.root)
        space = space_at(self.root)
        if space.inodes == 0:
            raise StorageFull(_NO_INODES)
        return space.bytes

    def _at(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(path)
        return self.root / path


class ObjectStorage:
    """Any fsspec file system whose writes appear at close (S3 and compatible)."""

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        if url.startswith("s3://"):
            options.setdefault("config_kwargs", PATIENCE)
        # other processes write too: a remembered listing would hide their objects and show old sizes
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        self._s3 = url.startswith("s3://")

    def put(self, path: str, data: bytes) -> None:
        with _our_errors(path):
            self._fs.pipe_file(self._at(path), data)

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        with _our_errors(path):
            handle = self._fs.open(self._at(path), "wb")
            with ExitStack() as failed:
                failed.callback(_abandon, handle)
                yield cast(BinaryIO, handle)
                failed.pop_all()
            handle.close()

    @contextmanager
    def reader(self, path: str, offset: int = 0) -> Iterator[BinaryIO]:
        with _our_errors(path), self._fs.open(self._at(path), "rb", block_size=_AHEAD) as handle:
            if offset:
                handle.seek(offset)
            yield cast(BinaryIO, io.BufferedReader(handle, CHUNK))  # its own reads no line of limited length

    def piece(self, path: str, offset: int, length: int) -> bytes:
        with _our_errors(path):
            return bytes(self._fs.cat_file(self._at(path), start=offset, end=offset + length))

    def size(self, path: str) -> int:
        with _our_errors(path):
            return int(self._fs.size(self._at(path)))

    def delete(self, path: str) -> None:
        _check_name(path)
        with _our_errors(path), suppress(FileNotFoundError):  # another may remove it at this moment
            if self._fs.exists(self._at(path)):
                self._fs.rm(self._at(path), recursive=True)

    def walk(self, prefix: str) -> Iterator[str]:
        with _our_errors(prefix):
            paths = self._list_objects(prefix, "Contents", "Key") if self._s3 else iter(self._fs.find(self._at(prefix)))
            yield from filter(_is_name, (path.removeprefix(self._root).lstrip("/") for path in paths))

    def list(self, prefix: str) -> list[str]:
        return sorted(self.walk(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        with _our_errors(prefix):
            paths = self._list_objects(prefix, "CommonPrefixes", "Prefix") if self._s3 else self._folders_at(prefix)
            yield from filter(_is_name, (path.rstrip("/").rpartition("/")[2] for path in paths))

    def _list_objects(self, prefix: str, kind: str, name: str) -> Iterator[str]:
        """Yield the objects of S3 page by page: s3fs has all of them in memory, a kilobyte for each.

        Source: docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
        """
        bucket, key, _ = self._fs.split_path(self._at(prefix))
        where = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/".lstrip("/")}
        if kind == "CommonPrefixes":
            where["Delimiter"] = "/"
        more = True
        while more:
            page = self._fs.call_s3("list_objects_v2", **where)
            yield from (f"{bucket}/{entry[name]}" for entry in page.get(kind, []))
            where["ContinuationToken"] = page.get("NextContinuationToken", "")
            more = page.get("IsTruncated", False) and where["ContinuationToken"]

    def _folders_at(self, prefix: str) -> Iterator[str]:
        with suppress(FileNotFoundError):
            yield from (
                entry["name"] for entry in self._fs.ls(self._at(prefix), detail=True) if entry["type"] == "directory"
            )

    def sweep(self, prefix: str, before: float) -> Iterator[bool]:  # noqa: ARG002 (unfinished parts are for the bucket's lifecycle rule)
        return iter(())

    def free(self) -> int | None:
        return None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


def open_storage(url: str) -> Storage:
    """Return the storage of a URL: `file:///folder` or anything fsspec knows."""
    if url.startswith("file://"):
        return DiskStorage(Path(url.removeprefix("file://")))
    return ObjectStorage(url)


def _is_name(path: str) -> bool:
    """Return whether a name is one of ours.

    Tools that show a bucket as folders mark these by an object whose name ends in `/`: removing that would remove the
    folder. And fsspec takes some letters for a pattern.
    """
    return bool(path) and not path.endswith("/") and not _MAGIC & set(path)


def _check_name(path: str) -> None:
    if not _is_name(path):
        raise ValueError(path)


def _abandon(handle: Any) -> None:
    """Drop an unfinished remote write: closing it would publish half an object."""
    handle.discard()
    handle.closed = True  # fsspec's own flag: its finaliser would flush


def _create(path: Path) -> BinaryIO:
    """Open a new file. Its folder mostly exists; another process may remove it at any time."""
    try:
        return path.open("xb", buffering=CHUNK)
    except FileNotFoundError:
        _make_folder(path.parent)
        return path.open("xb", buffering=CHUNK)


def _make_folder(folder: Path) -> None:
    """Make a folder durably: the parent of each new folder is synced."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_path(new.parent)


def sync_path(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files_in(base: str | Path) -> Iterator["os.DirEntry[str]"]:
    """Yield all files below a folder."""
    for entry in _entries(base):
        if entry.is_dir(follow_symlinks=False):
            yield from _files_in(entry.path)
        else:
            yield entry


def _entries(base: str | Path) -> Iterator["os.DirEntry[str]"]:
    """Yield the entries of a folder, which others may remove meanwhile, one at a time, however many there are."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(base) as entries:
        yield from entries


def _removed_if_old(entry: "os.DirEntry[str]", before: float) -> bool:
    with suppress(FileNotFoundError):  # its writer lives, and has ended meanwhile
        if entry.stat().st_mtime < before:
            Path(entry.path).unlink()
            return True
    return False


def remove_objects(storage: Storage, paths: Iterable[str]) -> None:
    """Remove objects that no row points to any more; leave to retention what cannot be removed now.

    All is committed by then, and a client that was told of a failure would do it again.
    """
    for path in paths:
        with suppress(StorageUnavailable, StorageFull):
            storage.delete(path)


def _unless_missing(_call: Any, _path: Any, failed: tuple[type[BaseException], BaseException, Any]) -> None:
    """Ignore the error of a file that another process removed from a folder meanwhile; report another one."""
    if not isinstance(failed[1], FileNotFoundError):
        raise failed[1]


def _full(error: OSError) -> StorageFull:
    """Return the error of a full disk, in the words for what it has none of. Making a file fails without inodes."""
    folder = Path(error.filename).parent if error.filename else None
    return StorageFull(_NO_INODES) if folder and space_at(folder).inodes == 0 else StorageFull()


@contextmanager
def _our_errors(path: str) -> Iterator[None]:
    """Turn errors of a storage into ours: clients see them, while paths and reasons are for the log."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("What was stored is gone.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            failures.count(failures.STORAGE, "full")
            raise _full(error) from error
        failures.count(failures.STORAGE, "unavailable")
        _unavailable.warn(path=path, reason=str(error))
        raise StorageUnavailable from error
    except Exception as error:  # clients of stores have no common base for what they raise
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        failures.count(failures.STORAGE, "unavailable")
        _unavailable.warn(path=path, reason=str(error))
        raise StorageUnavailable from error
