"""Which process is which: a pid may be reused, a pid with its start time may not."""

import os
import socket
from pathlib import Path


def hostname() -> str:
    return socket.gethostname()


def started(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is none (or only its zombie is left)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def me() -> tuple[str, int, int]:
    """Host, pid and start of this process."""
    return hostname(), os.getpid(), started(os.getpid()) or 0


def gone(host: str, pid: int, start: int) -> bool:
    """Whether that process certainly is no more. Of another host nothing is certain."""
    return host == hostname() and started(pid) != start
