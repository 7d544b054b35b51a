"""Memory is given back, as the C library shows."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
#: Pieces freed between others that are kept, too small for pages of their own; what is in memory, in MB.
GAPS = """
import ctypes, sys
from jobs.platform import memory

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
pieces = [libc.malloc(ctypes.c_size_t(16_000)) for _ in range(10_000)]
for piece in pieces:
    ctypes.memset(ctypes.c_void_p(piece), 1, 16_000)
full = held()
for n, piece in enumerate(pieces):
    if n % 16:
        libc.free(ctypes.c_void_p(piece))
freed = held()
memory.trim()
print(full, freed, held())
"""
#: Threads that allocate at the same time, then glibc's table of its arenas.
THREADS = """
import ctypes, sys, threading
from jobs.platform import memory

if sys.argv[1] == "few":
    memory.limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
there = threading.Barrier(9)

def allocate():
    libc.malloc(ctypes.c_size_t(10_000))
    there.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
there.wait()
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other arenas")
@pytest.mark.parametrize(("how", "fewest", "most"), [("few", 1, 2), ("any", 3, 99)])
def test_threads_share_arenas(how: str, fewest: int, most: int) -> None:
    command = [sys.executable, "-c", THREADS, how]
    own = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=60, check=True)

    assert fewest <= done.stderr.count("Arena ") <= most


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps other gaps")
def test_trim_returns_freed_memory_between_live_blocks() -> None:
    command = [sys.executable, "-c", GAPS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    full, freed, trimmed = map(int, done.stdout.split())

    assert freed > full - 30
    assert trimmed < full - 100
