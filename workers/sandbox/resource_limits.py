"""Limits of a confined process on memory and CPU time, soft ones for one input after the other."""

import os
import resource
from typing import Final

#: Of the process that imports this module; opened before Landlock denies /proc.
statm: Final = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def reopen() -> None:
    """Measure this process from now on: a forked process would otherwise measure the one that it was forked from."""
    opened = os.open("/proc/self/statm", os.O_RDONLY)
    os.dup2(opened, statm, inheritable=False)
    os.close(opened)


def address_space() -> int:
    """Return the bytes of address space that this process has taken."""
    return int(os.pread(statm, 64, 0).split()[0]) * resource.getpagesize()


def allow(memory_bytes: int, cpu_seconds: int) -> None:
    """Limit what the next input may take beyond what the process has taken so far."""
    lower(resource.RLIMIT_AS, address_space() + memory_bytes)
    used = resource.getrusage(resource.RUSAGE_SELF)
    lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds)


def relax() -> None:
    """End the limits of `allow`."""
    for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (hard, hard))


def lower(which: int, value: int, *, for_good: bool = False) -> None:
    """Set a soft limit to `value`, at most the hard one; with `for_good` the hard limit too."""
    hard = resource.getrlimit(which)[1]
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (soft, soft if for_good else hard))
