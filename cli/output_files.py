"""Write files that appear under their names when they are complete."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cli.errors import CliError

#: Folders of devices and open files; a redirected `/dev/stdout` looks like a regular file.
_DOORS = (Path("/dev"), Path("/proc"))
_OWN = re.compile(r"/dev/(stdout|stderr)|(?:/dev|/proc/self)/fd/(\d+)", re.ASCII)
_STREAMS = {"stdout": 1, "stderr": 2}


def is_replaced(path: Path) -> bool:
    """Return whether `whole` replaces `path` by a new file. Devices and pipes are written to directly."""
    location = path.absolute()
    if any(folder in location.parents for folder in _DOORS) and not location.is_relative_to("/dev/shm"):  # noqa: S108
        return False
    return path.is_file() or not path.exists()


def require_writable(path: Path) -> None:
    """Raise CliError if no file can be created at `path`. Commands call this before the work, not after it."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise CliError(f"{path}: there is no such folder")
    if path.is_dir():
        raise CliError(f"{path} is a folder")
    if is_replaced(path) and not os.access(folder, os.W_OK | os.X_OK):
        raise CliError(f"{path}: nothing can be written to its folder")


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to. When the block fails, the earlier file at `path` stays, and nothing is left beside it.

    Where `path` is a link, its target is replaced.
    """
    if not is_replaced(path):
        with _as_it_is(path) as out:
            yield out
        return
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.part")
    try:
        with temporary.open("wb") as out:
            yield out
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_it_is(path: Path) -> BinaryIO:
    """Open a device or pipe. A descriptor of this process is duplicated, to go on at its current position."""
    own = _OWN.fullmatch(str(path.absolute()))
    if own is None:
        return path.open("wb")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return os.fdopen(os.dup(_STREAMS.get(own[1]) or int(own[2])), "wb")
