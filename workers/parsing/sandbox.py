"""What the child may not do, from the moment it starts.

    with its parent   it dies (PR_SET_PDEATHSIG; it also ends when the pipe does)
    network           none, in a namespace of its own, where the kernel lets it have one; it says whether it has
    files             it writes none, and has few open
    for each file     memory and CPU time, counted from what it has used before

The limits are soft ones, raised from file to file: they stop accidents and bombs. Code of an attacker that runs in the
child has whatever the account has, less the network.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

from workers.parsing.terms import Limits

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_OPEN_FILES: Final = 64


def confine(parent: int) -> bool:
    """Whether it has no network."""
    libc = ctypes.CDLL(None, use_errno=True)
    alone = _without_network(libc)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after unshare: a new user namespace clears it
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:  # it died before it could be noticed
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    return alone


def _without_network(libc: ctypes.CDLL) -> bool:
    """An ordinary user needs a user namespace for it, which may be forbidden too."""
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


def allow(limits: Limits) -> None:
    """From now on, for one file."""
    _soft(resource.RLIMIT_AS, address_space() + limits.memory_bytes)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _soft(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds)


def relax() -> None:
    """Between files."""
    for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (hard, hard))


def address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _soft(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":  # of `nightmill doctor`: whether a child would be without network here
    sys.exit(not confine(os.getppid()))
