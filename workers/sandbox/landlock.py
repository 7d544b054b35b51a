"""Restrict which files this thread may open, by the Landlock security module of Linux 5.13 and later.

The kernel's ABI version says which rights it can restrict: 2 renaming between folders, 3 truncating, 4 TCP,
5 ioctl on devices, 6 abstract Unix sockets and signals to processes outside. What can be restricted is.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

from workers.sandbox.calls import call

_VERSION: Final = 1  # a flag of landlock_create_ruleset
_PATH_BENEATH: Final = 1  # a kind of rule

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ: Final = _READ_FILE | _READ_DIR
#: Rights that a rule on a file, not a folder, may name.
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
#: Rights on files by ABI: the first so many bits.
_FILE_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP: Final = 0b11  # bind, connect
_TCP_SINCE: Final = 4
_SCOPES: Final = 0b11  # abstract Unix sockets, signals
_SCOPES_SINCE: Final = 6


def abi() -> int:
    """Return the kernel's ABI version; 0 where Landlock is missing or off."""
    try:
        return call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Deny this thread every file that is not below a path of `readable` or `writable`; paths must exist.

    Return whether the kernel enforces it. `PR_SET_NO_NEW_PRIVS` must be set. Nothing can be executed.
    """
    version = abi()
    if version == 0:
        return False
    handled = (1 << _FILE_BITS[min(version, max(_FILE_BITS))]) - 1
    tcp = _TCP if version >= _TCP_SINCE else 0
    scopes = _SCOPES if version >= _SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", handled, tcp, scopes)
    all_but_execute = handled & ~(_EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK | _IOCTL_DEV)
    try:
        ruleset = call("landlock_create_ruleset", attributes, len(attributes), 0)
        try:
            for path in readable:
                _allow(ruleset, path, _READ)
            for path in writable:
                _allow(ruleset, path, all_but_execute)
            call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError:
        return False
    return True


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        call("landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
