"""Break out of the sandbox in every way, and print what became of each: `escapee.py FACTS`, a JSON object.

deeds      what to try, in order; names of functions below
without    parts of the sandbox that are left out, as if the kernel refused them; "all" is no sandbox at all
…          what the deeds need: paths, numbers of processes, ports, descriptors
"""

import ctypes
import errno
import fcntl
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.workers.sandbox.refused_calls import REFUSED
from workers.sandbox import confinement
from workers.sandbox.confinement import Policy
from workers.sandbox.system_calls import MACHINES, libc

FACTS: dict[str, Any] = json.loads(sys.argv[1])
_SEIZE = 0x4206  # of ptrace
_X32 = 0x40000000


def raw(name: str, *arguments: int, add: int = 0) -> int:
    """Make a system call by its number, past libc."""
    number = REFUSED[name][MACHINES[os.uname().machine]]
    assert number is not None
    return failing(libc.syscall(*(ctypes.c_long(one) for one in (number + add, *arguments))))


def failing(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def connect(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(family, kind) as one:
        one.connect(address)


def threads() -> str:
    """Start threads until no more can be."""
    wait, started = threading.Event(), 0
    try:
        while started < 5000:
            threading.Thread(target=wait.wait, daemon=True).start()
            started += 1
    except (RuntimeError, MemoryError):
        pass
    wait.set()
    return str(started)


def memory() -> str:
    bytearray(FACTS["memory_bytes"])
    return "taken"


def own_thread() -> None:
    threading.Thread(target=int).start()


def write(path: str) -> None:
    with Path(path).open("wb") as file:
        file.write(b"x")


def foreign_signals() -> None:
    reading, _ = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, FACTS["victim"])


DEEDS: dict[str, Callable[[], object]] = {
    # files
    "read operator.key": lambda: Path(FACTS["key"]).read_bytes(),
    "read the database": lambda: Path(FACTS["database"]).read_bytes(),
    "list the data folder": lambda: list(Path(FACTS["data"]).iterdir()),
    "read the environment of another process": lambda: Path(f"/proc/{FACTS['victim']}/environ").read_bytes(),
    "read the memory of another process": lambda: Path(f"/proc/{FACTS['victim']}/mem").open("rb").close(),
    "write beside the scratch folder": lambda: write(FACTS["outside"]),
    "truncate the database": lambda: os.truncate(FACTS["database"], 0),
    "remove operator.key": lambda: Path(FACTS["key"]).unlink(),
    "change the mode of operator.key": lambda: Path(FACTS["key"]).chmod(0o666),
    # the network
    "connect to the broker's socket": lambda: connect(socket.AF_UNIX, FACTS["broker"]),
    "connect to an abstract socket": lambda: connect(socket.AF_UNIX, "\0" + FACTS["abstract"]),
    "connect by TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", FACTS["port"])),
    "get the network back": lambda: failing(libc.setns(FACTS["network"], 0)),
    "make a pair of datagram sockets": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    # other processes
    "trace another process": lambda: failing(libc.ptrace(_SEIZE, FACTS["victim"], 0, 0)),
    "signal another process": lambda: os.kill(FACTS["victim"], signal.SIGWINCH),
    "signal the parent": lambda: os.kill(os.getppid(), signal.SIGWINCH),
    "signal everybody": lambda: os.kill(-1, signal.SIGWINCH),
    "have another process signalled": foreign_signals,
    "limit another process": lambda: resource.prlimit(FACTS["victim"], resource.RLIMIT_CORE),
    "fork": lambda: os.fork() or os._exit(0),
    "start a program": lambda: subprocess.run(["/bin/true"], check=True),
    "become another program": lambda: os.execv("/bin/true", ["true"]),
    "outlive the parent": lambda: failing(libc.prctl(1, 0, 0, 0, 0)),
    # the kernel; arguments that it would not take either, but with another error
    "io_uring": lambda: raw("io_uring_setup", 0, 0),
    "bpf": lambda: raw("bpf", -1, 0, 0),
    "keyctl": lambda: raw("keyctl", -1),
    "add_key": lambda: raw("add_key", 0, 0, 0, 0, 0),
    "perf": lambda: raw("perf_event_open", 0, 0, 0, 0, 0),
    "userfaultfd": lambda: raw("userfaultfd", -1),
    "process_vm_readv": lambda: raw("process_vm_readv", FACTS["victim"], 0, 0, 0, 0, -1),
    "pidfd_open": lambda: raw("pidfd_open", FACTS["victim"], 0),
    "mount": lambda: raw("mount", 0, 0, 0, 0, 0),
    "unshare": lambda: raw("unshare", 0x10000000),
    "shared memory": lambda: raw("shmget", 0, 0, 0),
    "take the host's places for asynchronous input": lambda: raw("io_setup", 0, 0),
    "write all disks": lambda: raw("sync"),
    "lock a file": lambda: raw("flock", -1, 2),
    "evict a file from memory": lambda: raw("fadvise64", -1, 0, 0, 4),
    "send to a message queue": lambda: raw("mq_timedsend", -1, 0, 0, 0, 0),
    "list mounts": lambda: raw("listmount", 0, 0, 0, 0),
    "a call of x32": lambda: raw("keyctl", -1, add=_X32),
    # what must work
    "threads": threads,
    "memory": memory,
    "start a thread": own_thread,
    "import a module": lambda: importlib.import_module("sqlite3").connect(":memory:").execute("SELECT 1").fetchone()[0],
    "write to the scratch folder": lambda: write(FACTS["scratch"] + "/file"),
    "make a pair of streams": lambda: [one.close() for one in socket.socketpair()],
    "draw a random number": lambda: os.close(os.open("/dev/urandom", os.O_RDONLY)),
    "signal itself": lambda: os.kill(os.getpid(), 0),
}


def outcome(deed: Callable[[], object]) -> str:
    """Return what a deed returned, in a word, or the name of its error."""
    try:
        done = deed()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except MemoryError:
        return "MemoryError"
    return done if isinstance(done, str) else "done"


def confined() -> list[str]:
    without = FACTS["without"]
    if without == ["all"]:
        return without
    if "landlock" in without:
        confinement.restrict_files = lambda *_: False
    if "seccomp" in without:
        confinement.install_filter = lambda _: False
    if "namespaces" in without:
        confinement.unshare = lambda _: False
    policy = Policy("", scratch=FACTS["scratch"], file_bytes=1 << 20, memory_bytes=FACTS["memory_bytes"])
    return list(confinement.confine(policy, FACTS["parent"]))


if __name__ == "__main__":
    missing = confined()
    print(json.dumps({"missing": missing, "outcomes": {name: outcome(DEEDS[name]) for name in FACTS["deeds"]}}))
