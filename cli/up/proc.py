"""What a supervisor does about the processes below it.

Ancestry is exact as long as an ancestor is a subreaper: orphans then move up to it instead of to pid 1.
"""

import ctypes
import os
import threading
from collections.abc import Collection

from jobs.platform import processes

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Adopt every orphan among the descendants of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def strays(known: Collection[int], ended: int = 0) -> set[int]:
    """What must not go on living under this process, as pids.

    `known` are its children in good standing, each leading a session of its own. A stray is a member of the session
    of `ended`; a child that is not known and lives outside the known sessions (it was orphaned); or a descendant
    of these.
    """
    table = processes.table()
    me = os.getpid()
    roots = {
        process.pid
        for process in table.values()
        if (ended and process.session == ended)
        or (process.parent == me and process.pid not in known and process.session not in known)
    }
    return {pid for pid in processes.with_descendants(roots, table) if pid in table and not table[pid].zombie}


def kill_strays(known: Collection[int], ended: int = 0, patience: float = 5.0) -> bool:
    """SIGKILL strays until there are none; False when some would not die (a device holds them)."""
    pause = threading.Event()
    for _ in range(int(patience / 0.01)):
        found = strays(known, ended)
        if not found:
            return True
        processes.kill(found)
        pause.wait(0.01)
    return False
