"""A root folder that holds nothing of the host but given files and folders.

    /                     a file system in memory, which nobody can write to
    …/site-packages       a given folder, bound to the path that it has on the host, read-only with all below it
    /lib -> usr/lib       a symbolic link on the way to a given folder
    /tmp                  a folder for a file system in memory, which `mount_scratch` gives a process of its own

What is not there has no name: code can neither read it nor learn its size or time, or that it exists. Landlock does not
hide that much, and hides it only on kernels that have it. An empty root takes Linux 5.12 or later, for `mount_setattr`.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from workers.sandbox.system_calls import call, unshare

#: Where a forked process has its own file system.
SCRATCH: Final = "/tmp"  # noqa: S108 (the process's own)
#: Where the new root is put together, out of the way of all that it may hold.
_BUILT_AT: Final = "/proc"
_INODES: Final = 16_384  # files and folders of a file system in memory

_NEW_MOUNTS: Final = 0x00020000
_NO_SET_USER_ID, _NO_DEVICES, _NO_PROGRAMS = 2, 4, 8  # flags of mount
_BIND: Final = 4096 | 16384  # with what is mounted below
_PRIVATE: Final = (1 << 18) | 16384  # all mounts: those of the host stay as they are
_DETACH: Final = 2
_HERE: Final = -100  # AT_FDCWD
_WITH_ALL_BELOW: Final = 0x8000
#: struct mount_attr: read-only, no set-user-id programs.
_READ_ONLY: Final = struct.pack("=4Q", 1 | _NO_SET_USER_ID, 0, 0, 0)


def enter(paths: Iterable[str]) -> bool:
    """Let this process and its children see only `paths`, which must exist; return whether the kernel allowed it."""
    given = [Path(path) for path in paths]
    real = {path.resolve() for path in given}
    links = dict(link for path in (*given, Path(SCRATCH)) for link in _links(path))
    if not unshare(_NEW_MOUNTS):
        return False
    try:
        call("mount", b"none", b"/", None, _PRIVATE, None)
        call("mount", b"tmpfs", _BUILT_AT.encode(), b"tmpfs", _NO_SET_USER_ID | _NO_DEVICES, b"mode=755")
        for path in real:
            if real.isdisjoint(path.parents):
                _bind(path)
        _path_in_new_root(Path(SCRATCH).resolve()).mkdir(parents=True, exist_ok=True)
        for link, target in links.items():
            new = _path_in_new_root(link)
            if not os.path.lexists(new):
                new.parent.mkdir(parents=True, exist_ok=True)
                new.symlink_to(target)
        call("mount_setattr", _HERE, _BUILT_AT.encode(), _WITH_ALL_BELOW, _READ_ONLY, len(_READ_ONLY))
        os.chdir(_BUILT_AT)
        call("pivot_root", b".", b".")  # the old root is above the new one now
        call("umount2", b".", _DETACH)
        os.chdir("/")
    except OSError:
        return False
    return True


def mount_scratch(size: int) -> bool:
    """Give this process a scratch folder of `size` bytes in memory; return whether the kernel allowed it.

    What the root holds below that folder, such as a checkout, is there as before.
    """
    if not unshare(_NEW_MOUNTS):
        return False
    try:
        held = {path: os.open(path, os.O_PATH) for path in Path(SCRATCH).iterdir()}
        options = f"size={size},nr_inodes={_INODES},mode=700".encode()
        flags = _NO_SET_USER_ID | _NO_DEVICES | _NO_PROGRAMS
        call("mount", b"tmpfs", SCRATCH.encode(), b"tmpfs", flags, options)
        for path, folder in held.items():
            path.mkdir()
            os.fchdir(folder)
            call("mount", b".", bytes(path), None, _BIND, None)
            os.close(folder)
        os.chdir(SCRATCH)
    except OSError:
        return False
    return True


def _path_in_new_root(path: Path) -> Path:
    """Return where a path of the host is put together."""
    return Path(_BUILT_AT, path.relative_to("/"))


def _bind(path: Path) -> None:
    """Make a file or folder of the host appear at its path in the new root. Raises: OSError."""
    target = _path_in_new_root(path)
    if path.is_dir():
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    call("mount", bytes(path), bytes(target), None, _BIND, None)


def _links(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the symbolic links that lead to a path, at their real paths, and their targets."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink():
            folder, target = part.parent.resolve(), part.readlink()
            yield folder / part.name, target
            yield from _links(folder / target / path.relative_to(part))
            return
