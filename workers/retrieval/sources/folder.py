"""A source in a folder of this machine. Links are never followed, so that no name leads out of the allowed folders.

Each folder is opened relative to its parent and refused if it is a link: what is checked is what is opened, even if
something is moved meanwhile.
"""

import errno
import fnmatch
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from jobs.retrieval.source_locations import allowed_root
from workers.retrieval.sources.base import (
    CHUNK,
    Fetched,
    ItemFailed,
    SourceEntry,
    SourceUnavailable,
    Take,
    display_name,
    too_many,
)

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not block for a writer
#: Errors of a folder that has become a link or a file, or was removed.
_MOVED: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_LISTINGS: Final = 3  # at most, if folders move meanwhile


class FolderReader:
    """The files below a folder that match a pattern, without hidden ones.

    A file that changed less than `settled` seconds ago has no fingerprint.
    """

    def __init__(self, roots: Sequence[str], own: Sequence[Path], path: str, glob: str, settled: float) -> None:
        self._roots, self._own, self._path = roots, own, Path(path)
        self._pattern = tuple(glob.split("/"))
        self._settled = settled

    def entries(self, limit: int, look: Callable[[], None]) -> list[SourceEntry]:
        for _ in range(_LISTINGS):
            entries, whole = self._list_files(limit, look)
            if whole:
                break
        return entries

    def _list_files(self, limit: int, look: Callable[[], None]) -> tuple[list[SourceEntry], bool]:
        """List the files, and return whether the list is complete: no folder moved meanwhile."""
        entries: list[SourceEntry] = []
        waiting: list[tuple[str, ...]] = [()]
        passed_over: list[tuple[str, ...]] = []
        with self._open() as top:
            while waiting:
                look()
                parts = waiting.pop()
                for name, is_folder, entry in self._scan(top, parts, passed_over):
                    if is_folder:
                        waiting.append((*parts, name))
                    elif entry is not None:
                        entries.append(entry)
                    if len(entries) > limit:
                        raise too_many(limit)
        return entries, not passed_over

    def fetch(self, entry: SourceEntry, known: dict[str, Any] | None, take: Take) -> Fetched | None:
        *parts, name = entry.key.split("/")
        if {"", ".", ".."} & {*parts, name}:
            raise ItemFailed("bad_name", "Its name is not a path below the folder.")
        try:
            with self._open() as top, _open_below(top, parts) as folder:
                descriptor = os.open(name, _FILE, dir_fd=folder)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ItemFailed("not_a_file", "It is not a regular file.")
                if known is not None and self._fingerprint(status) == known:
                    return None
                while chunk := file.read(CHUNK):
                    take(chunk)
        except SourceUnavailable as error:
            raise ItemFailed(error.code, error.message) from error
        except OSError as error:
            raise ItemFailed("not_readable", f"It cannot be read: {error.strerror}.") from error
        return Fetched(self._fingerprint(status), entry.filename)

    def _scan(
        self, top: int, parts: tuple[str, ...], passed_over: list[tuple[str, ...]]
    ) -> Iterator[tuple[str, bool, SourceEntry | None]]:
        """Yield the names in one folder: whether each is a folder, and the entry of a matching file.

        A folder that was removed or moved since its parent was read is skipped. Raises: SourceUnavailable.
        """
        with _translate_errors():
            try:
                with _open_below(top, parts) as descriptor, os.scandir(descriptor) as names:
                    for item in names:
                        if not item.name.startswith("."):
                            yield self._judge(item, parts)
            except OSError as error:
                if not parts or error.errno not in _MOVED:
                    raise
                passed_over.append(parts)

    def _judge(self, item: "os.DirEntry[str]", parts: tuple[str, ...]) -> tuple[str, bool, SourceEntry | None]:
        if item.is_dir(follow_symlinks=False):
            return item.name, True, None
        if not item.is_file(follow_symlinks=False) or not matches(self._pattern, (*parts, item.name)):
            return item.name, False, None
        key = "/".join((*parts, item.name))
        try:
            key.encode()
        except UnicodeEncodeError:
            readable = key.encode(errors="backslashreplace").decode()  # keeps different names different
            return (
                item.name,
                False,
                SourceEntry(readable, display_name(readable), fault=ItemFailed("bad_name", "Its name is not UTF-8.")),
            )
        try:
            status = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            return item.name, False, None
        return item.name, False, SourceEntry(key, display_name(key), self._fingerprint(status), status.st_size)

    def _fingerprint(self, status: os.stat_result) -> dict[str, Any] | None:
        """Return the fingerprint; None while the file is so new that another change might not show."""
        if abs(time.time() - status.st_ctime) < self._settled:
            return None
        return {"size": status.st_size, "mtime": status.st_mtime_ns, "ctime": status.st_ctime_ns}

    @contextmanager
    def _open(self) -> Iterator[int]:
        """Open the folder itself. Raises SourceUnavailable."""
        allowed = allowed_root(self._roots, self._path, self._own)
        if allowed is None:
            raise SourceUnavailable("folder_not_allowed", "The operator does not allow this folder (any more).")
        top, parts = allowed
        with _translate_errors():
            root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with _translate_errors(), _open_below(root, parts) as opened:
                descriptor = os.dup(opened)
        finally:
            os.close(root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceUnavailable("folder_not_readable", f"The folder cannot be read: {error.strerror}.") from error


@contextmanager
def _open_below(top: int, parts: Sequence[str]) -> Iterator[int]:
    """Open a folder below another. Raises OSError."""
    descriptor = os.dup(top)
    try:
        for part in parts:
            below_it = os.open(part, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below_it
        yield descriptor
    finally:
        os.close(descriptor)


def matches(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Match like a shell's glob, part by part: `**` is any number of folders, and at the end everything in them."""
    reached = {0}  # positions in the pattern that may be reached
    for part in parts:
        reached = {after for at in _skip_stars(pattern, reached) for after in _next_positions(pattern, at, part)}
    return len(pattern) in _skip_stars(pattern, reached)


def _skip_stars(pattern: tuple[str, ...], reached: set[int]) -> set[int]:
    """Add the positions behind each `**`, which may match nothing."""
    positions = set(reached)
    for at in range(len(pattern)):
        if at in positions and pattern[at] == "**":
            positions.add(at + 1)
    return positions


def _next_positions(pattern: tuple[str, ...], at: int, part: str) -> tuple[int, ...]:
    if at == len(pattern):
        return ()
    if pattern[at] == "**":
        return (at,)
    return (at + 1,) if _compile(pattern[at]).match(part) else ()


@lru_cache(maxsize=64)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))
