"""The memory of a process and of its machine: the garbage collector, the C library's allocator, what is free."""

import ctypes
import gc
from pathlib import Path
from typing import Final

import psutil

#: None where the C library is not glibc.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
_M_ARENA_MAX: Final = -8  # malloc.h
_YOUNG_OBJECTS: Final = 10_000
_CGROUP: Final = Path("/sys/fs/cgroup")


def freeze() -> None:
    """Take all objects that exist now out of the garbage collector's sight, and let it run less often.

    A process has hundreds of thousands of objects of its libraries. Looking through them for every dozen shards took
    nearly half of a worker's time, and a web process answers nothing for the tenth of a second that one look takes.
    What was frozen before, and is needed no more, is freed first.

    From here on the collector runs after 10,000 new objects instead of 700: with hundreds of requests in flight nearly
    all young objects are in use, and looking through them took a fifth of the CPU of a line of a batch.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


def limit_arenas(count: int = 2) -> None:
    """Limit the arenas of glibc to `most` for threads that are started from here on.

    By default every thread gets an arena of its own, up to eight a core, and each arena keeps what was freed in it: a
    library that works in dozens of threads holds its peak in every one of them. With another C library nothing is done.
    """
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, count)


def free_bytes() -> int:
    """Return the memory that processes may still take: of this machine, or of its container where that has less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def trim() -> None:
    """Return freed memory to the operating system; takes tens of milliseconds.

    Freeing large objects of varying sizes leaves gaps, which glibc keeps.
    """
    if _trim is not None:
        _trim(0)
