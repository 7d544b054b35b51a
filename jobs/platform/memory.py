"""What stays in a process's memory."""

import ctypes
import gc
from typing import Final

#: None where the C library is not glibc.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
_M_ARENA_MAX: Final = -8  # malloc.h
_YOUNG_OBJECTS: Final = 10_000


def freeze() -> None:
    """Whatever is in memory now stays for good, and the collector leaves it alone from here on.

    A process holds hundreds of thousands of objects of its libraries. To look through them for every dozen shards took
    nearly half of a worker's time, and a web process answers nobody for the tenth of a second that one look takes. What
    was taken for good before, and is needed no more, is freed first.

    From here on the collector runs each 10,000 new objects instead of each 700: with hundreds of requests in flight the
    young objects are nearly all in use, and to look through them took a fifth of the CPU of a line of a batch.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


def few_arenas(most: int = 2) -> None:
    """What threads allocate that are started from here on comes from so few arenas of glibc.

    It gives every thread one of its own, up to eight a core, and keeps in each what was freed there: a library that
    works in dozens of threads holds its peak in every one of them. Nothing is done where the C library is another.
    """
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, most)


def trim() -> None:
    """Give back to the machine what was freed: tens of milliseconds.

    Whoever frees large pieces of ever other sizes leaves gaps, which glibc keeps.
    """
    if _trim is not None:
        _trim(0)
