"""Find and kill the processes below a supervisor.

Ancestry is reliable as long as an ancestor is a subreaper: orphans then become its children instead of those of pid 1.
"""

import ctypes
import os
import threading
from collections.abc import Collection

from jobs.platform import processes

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def strays(known: Collection[int], ended: int = 0) -> set[int]:
    """Return the pids of the processes that must be killed.

    `known` are the running children, each the leader of a session. A stray is a process in the session of `ended`, an
    unknown child outside the known sessions (an adopted orphan), or a descendant of one of these.
    """
    table = processes.table()
    me = os.getpid()
    roots = {
        process.pid
        for process in table.values()
        if (ended and process.session == ended)
        or (process.parent == me and process.pid not in known and process.session not in known)
    }
    return {pid for pid in processes.add_descendants(roots, table) if pid in table and not table[pid].zombie}


def kill_strays(known: Collection[int], ended: int = 0, patience: float = 5.0) -> bool:
    """Kill strays until none is left; return False when some do not die (a device holds them)."""
    pause = threading.Event()
    for _ in range(int(patience / 0.01)):
        pids = strays(known, ended)
        if not pids:
            return True
        processes.kill(pids)
        pause.wait(0.01)
    return False
