"""Files that appear under their names when they are whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cli.trouble import Trouble

#: What lies there are doors to devices and open files, even where it looks like a file: `/dev/stdout`, redirected.
_DOORS = (Path("/dev"), Path("/proc"))


def replaced(path: Path) -> bool:
    """Whether `whole` puts a new file in its place. A device or a pipe is written to as it is."""
    if any(door in path.absolute().parents for door in _DOORS) and not path.is_relative_to("/dev/shm"):  # noqa: S108
        return False
    return path.is_file() or not path.exists()


def require_writable(path: Path) -> None:
    """Raises Trouble where no file of this name can be made: told before the work, not after it."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise Trouble(f"{path}: there is no such folder")
    if path.is_dir():
        raise Trouble(f"{path} is a folder")
    if replaced(path):
        with _beside(path.resolve()).open("wb"):
            pass
        _beside(path.resolve()).unlink()


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """What to write to. Where the block fails, whatever was at `path` before stays, and nothing beside it.

    Where `path` is a link, the file that it names is replaced.
    """
    if not replaced(path):
        with path.open("ab") as out:
            yield out
        return
    path = path.resolve()
    temporary = _beside(path)
    try:
        with temporary.open("wb") as out:
            yield out
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
