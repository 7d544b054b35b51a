"""Escapes from the sandbox of python graders, a class each: what is tried, and the error that it meets."""

import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any


def body(code: str) -> str:
    """Return a source whose `grade` runs the code, which sees `sample` and `item`."""
    return "import ctypes, os, signal, socket, sys\ndef grade(sample, item):\n" + indent(code, "    ")


PERMISSION = "PermissionError"
#: Calls the kernel past Python's own checks; the call fails with EPERM.
RAW = (
    "libc = ctypes.CDLL(None, use_errno=True)\nresult = libc.syscall({call})\n"
    "raise OSError(ctypes.get_errno(), 'no') if result < 0 else SystemError('done')"
)
ESCAPES: dict[str, tuple[str, str]] = {
    # files
    "read a file of the host": ("open('/etc/passwd').read()", "FileNotFoundError"),
    "read the data folder": ("open({key!r}).read()", "FileNotFoundError"),
    "list the root folder": ("os.listdir('/')", PERMISSION),
    "list a home folder": ("os.listdir('/root')", PERMISSION),
    "write beside its own folder": ("open('/var/tmp/x', 'w')", "FileNotFoundError"),
    "write into the installed packages": ("open(os.__file__, 'a')", "PermissionError|Read-only"),
    "write into its root": ("os.mkdir('/x')", "PermissionError|Read-only"),
    "remove a file of the host": ("os.unlink({key!r})", "FileNotFoundError"),
    "link to a file of the host": ("os.symlink({key!r}, '/tmp/l')\nopen('/tmp/l').read()", "FileNotFoundError"),
    "make a device": ("os.mknod('/tmp/d', 0o20666, os.makedev(1, 1))", PERMISSION),
    "change the mode of a file": ("os.chmod(os.__file__, 0o777)", PERMISSION),
    "reach open descriptors": ("assert sum(not is_closed(n) for n in range(64)) <= 6", "done score"),
    "climb out with chroot": ("os.chroot('/tmp')", PERMISSION),
    # what Landlock does not hide
    "see that a file of the host exists": ("os.stat('/etc/shadow')", "FileNotFoundError"),
    "see where a link of the host leads": ("os.readlink('/proc/self/exe')", "FileNotFoundError"),
    "see how full the host's disk is": ("os.statvfs('/usr/lib')", PERMISSION),
    "see that a process exists": ("os.stat('/proc/{victim}')", "FileNotFoundError"),
    "enter a folder of the host": ("os.chdir('/etc/ssl')", "FileNotFoundError"),
    "name a file of the host without opening it": ("os.open('/var/log', os.O_PATH)", "FileNotFoundError"),
    "climb out of the root": ("os.stat('/../../../../../../../etc/shadow')", "FileNotFoundError"),
    # /proc and other processes
    "read its own memory by /proc": ("open('/proc/self/mem', 'rb')", "FileNotFoundError"),
    "read the environment of its parent": ("open('/proc/1/environ').read()", "FileNotFoundError"),
    "list processes": ("os.listdir('/proc')", "FileNotFoundError"),
    "signal its parent": ("os.kill(os.getppid(), signal.SIGKILL)", PERMISSION),
    "signal everybody": ("os.kill(-1, signal.SIGKILL)", PERMISSION),
    "signal its process group": ("os.killpg(0, signal.SIGKILL)", PERMISSION),
    "signal a process of the host": ("os.kill({victim}, signal.SIGKILL)", PERMISSION),
    "trace its parent": (RAW.format(call="101, 16, os.getppid(), 0, 0"), PERMISSION),
    "read the memory of its parent": (RAW.format(call="310, os.getppid(), 0, 0, 0, 0, 0"), PERMISSION),
    "open its parent": ("os.pidfd_open(os.getppid())", PERMISSION),
    "limit its parent": ("import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE)", PERMISSION),
    "raise its own limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "ValueError|PermissionError",
    ),
    # new processes and programs
    "fork": ("os.fork()", PERMISSION),
    "fork past Python": (RAW.format(call="57"), PERMISSION),
    "start a program": ("import subprocess\nsubprocess.run(['/bin/true'])", PERMISSION),
    "become a program": ("os.execv('/bin/true', ['true'])", PERMISSION),
    "run a program that it wrote": (
        "open('/tmp/p', 'w').write('#!/bin/sh')\nos.execv('/tmp/p', ['p'])", PERMISSION,
    ),
    "run a program from memory": (RAW.format(call="319, b'x', 0"), PERMISSION),
    "use processes of multiprocessing": (
        "import multiprocessing\nmultiprocessing.Process(target=int).start()", PERMISSION,
    ),
    "start more threads than it may": (
        "import threading as t\nw = t.Event()\nfor n in range(100): t.Thread(target=w.wait, daemon=True).start()",
        "RuntimeError",
    ),
    # the network
    "connect to this host": ("socket.create_connection(('127.0.0.1', {port}))", PERMISSION),
    "connect by IPv6": ("socket.socket(socket.AF_INET6)", PERMISSION),
    "connect to a Unix socket": ("socket.socket(socket.AF_UNIX).connect({socket!r})", PERMISSION),
    "send packets": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", PERMISSION),
    "look up a name": ("socket.getaddrinfo('example.com', 80)", "gaierror|PermissionError"),
    "ask the kernel by netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", PERMISSION),
    # namespaces and mounts
    "enter new namespaces": (RAW.format(call="272, 0x10000000"), PERMISSION),
    "mount a file system": (RAW.format(call="165, b'tmpfs', b'/tmp', b'tmpfs', 0, 0"), PERMISSION),
    "unmount its own folder": (RAW.format(call="166, b'/tmp', 0"), PERMISSION),
    # the kernel
    "use io_uring": (RAW.format(call="425, 8, 0"), PERMISSION),
    "load a BPF program": (RAW.format(call="321, 0, 0, 0"), PERMISSION),
    "read the keys of the kernel": (RAW.format(call="250, 0, 0, 0, 0, 0"), PERMISSION),
    "take the host's places for asynchronous input": (
        "ctx = ctypes.c_ulong()\n" + RAW.format(call="206, 65000, ctypes.byref(ctx)"), PERMISSION,
    ),
    "write all disks": (RAW.format(call="162"), PERMISSION),
    "tell another grader something by a lock": (
        "import fcntl\nfcntl.flock(open(os.__file__), fcntl.LOCK_SH)", PERMISSION,
    ),
    "evict a file that others use": (
        "os.posix_fadvise(os.open(os.__file__, 0), 0, 0, os.POSIX_FADV_DONTNEED)", PERMISSION,
    ),
    "set the clock": ("import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)", PERMISSION),
    "attach shared memory of others": (RAW.format(call="29, 1, 4096, 0o1666"), PERMISSION),
    "become root": ("os.setuid(0)", "PermissionError|Invalid argument"),
    # memory, disk and time
    "take more memory than it may": ("bytearray(3 << 30)", "MemoryError"),
    "fill its disk": (
        "with open('/tmp/f', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "OSError",
    ),
    "make files without end": (
        "n = 0\nwhile True:\n    open(f'/tmp/{{n}}', 'w').close()\n    n += 1", "OSError",
    ),
    "open files without end": ("held = [open('/tmp/f', 'w') for _ in range(100)]", "OSError"),
    "end without a score": ("os._exit(0)", "ended without a score"),
    "crash": ("ctypes.string_at(0)", "SIGSEGV"),
    "kill itself": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
}  # fmt: skip


#: Refused by Landlock alone. Without it these folders can be listed, and hold nothing else of the host.
BY_LANDLOCK = ("list the root folder", "list a home folder")


def source_of(name: str, facts: Mapping[str, Any]) -> str:
    """Return a source that tries an escape, and says so where nothing stops it."""
    helper = "import os\ndef is_closed(n):\n    try: os.fstat(n)\n    except OSError: return True\n"
    return helper + body(ESCAPES[name][0].format(**facts) + "\nraise SystemError('done score')")


def is_refused(name: str, error: str) -> bool:
    """Return whether an escape met one of the errors that it is to meet."""
    return any(words in error for words in ESCAPES[name][1].split("|"))


class Scene:
    """Hold what an escape could reach on this host: a secret, a process, a port and a socket."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "operator.key"
        self.key.write_text("secret")
        self.victim = subprocess.Popen(["sleep", "600"])
        self.tcp, self.unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "s"))
        self.unix.listen()
        self.facts = {
            "key": str(self.key), "victim": self.victim.pid, "port": self.tcp.getsockname()[1],
            "socket": str(folder / "s"),
        }  # fmt: skip

    def close(self) -> None:
        self.tcp.close()
        self.unix.close()
        self.victim.kill()
        self.victim.wait()
