"""Take everything from this process that running Python code on a given input does not need.

    own_user           as root: nobody, else the owner of the code, whichever can read the interpreter and the code
    user_namespace     root has no capabilities outside; processes are counted apart
    network_namespace  no interface, not even a loopback; no System V memory of others
    capabilities       none, and none to be had
    landlock           read-only access to the interpreter, packages, our code and shared libraries; nothing else
    seccomp            no sockets, programs, processes, signals to others, mounts, or large parts of the kernel

A process that forks another for each input has two parts more, and confines itself in three steps: `separate`, then in
its first child `leave_files`, then in each forked process `confine_input`.

    pid_namespace      no other process of the host has a number that it could name
    mount_namespace    nothing but the files above is there (`empty_root`); /tmp is in memory, and ends with the input

With such a root Landlock is a further layer, not a part: it is in force where the kernel has it, and nobody misses it.

The parts overlap on purpose: the kernel, or a container, may refuse each of them. Where neither user can read the code
and root needs a capability for it, root keeps that one capability and enters no user namespace, which would void it.

Landlock (Linux 5.13 and later) restricts which files this thread may open. The kernel's ABI version says which rights
it can restrict: 2 renaming between folders, 3 truncating, 4 TCP, 5 ioctl on devices, 6 abstract Unix sockets and
signals to processes outside. What can be restricted is.
"""

import ctypes
import os
import re
import resource
import signal
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from workers.sandbox import empty_root, resource_limits
from workers.sandbox.system_calls import call, install_filter, libc, prctl, unshare

PARTS: Final = ("own_user", "user_namespace", "network_namespace", "capabilities", "landlock", "seccomp")
#: Parts of a process that `separate` and `confine_input` have confined.
FORK_PARTS: Final = (
    "user_namespace", "network_namespace", "pid_namespace", "mount_namespace", "capabilities", "seccomp",
)  # fmt: skip

_NEW_USER: Final = 0x10000000
_NEW_NETWORK_AND_IPC: Final = 0x40000000 | 0x08000000
_NEW_PID: Final = 0x20000000
_APART: Final = _NEW_USER | _NEW_NETWORK_AND_IPC | _NEW_PID
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 24, 38
_CAPABILITIES_VERSION: Final = 0x20080522
_MAX_CAPABILITIES: Final = 64
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2  # capabilities, as bits
_NOBODY: Final = 65534
_OPEN_FILES: Final = 64
_THREADS: Final = 256  # libraries start one for each core
#: What shared libraries and programs' data are read from, and what Python itself opens.
_SYSTEM: Final = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share", "/usr/local/share", "/etc/ld.so.cache",
    "/etc/alternatives", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
_NULL: Final = "/dev/null"
_OURS: Final = ("jobs", "workers")


class Policy(msgspec.Struct, frozen=True):
    """Say what a child runs and what it may use beyond the interpreter and the installed code.

    `readable` are files or folders; `scratch` is the folder that it may write to, in files of at most `file_bytes`, and
    that belongs to the child's user afterwards.
    `memory_bytes` limits its address space for good; 0 does not. `forks` says that the child forks a process for each
    input; the other fields but `module` are then without effect.
    """

    module: str
    readable: tuple[str, ...] = ()
    scratch: str | None = None
    file_bytes: int = 0
    memory_bytes: int = 0
    forks: bool = False


class InputLimits(msgspec.Struct, frozen=True):
    """Limits of a forked process. `disk_bytes` is the size of its /tmp, `memory_bytes` counts from its start."""

    memory_bytes: int
    disk_bytes: int
    cpu_seconds: int
    threads: int


def confine(policy: Policy, parent: int) -> tuple[str, ...]:
    """Confine this process, a child of the process `parent`, and return the names of the parts that are missing."""
    readable = [path for path in (*_python(), *_SYSTEM, *policy.readable) if os.access(path, os.R_OK)]
    parts: dict[str, bool] = {}
    was_root = os.geteuid() == 0
    apart = unshare(_NEW_NETWORK_AND_IPC)  # root may; others need a user namespace for it
    parts["own_user"] = not was_root or _own_user(readable, policy.scratch)
    capability = 0 if not was_root or parts["own_user"] else _needed_capability(readable, policy.scratch)
    parts["user_namespace"] = not capability and unshare(_NEW_USER | (0 if apart else _NEW_NETWORK_AND_IPC))
    parts["network_namespace"] = apart or parts["user_namespace"]
    _limit(policy, alone=parts["user_namespace"] and _counts_by_namespace())
    parts["capabilities"] = _keep_capabilities(capability) and not capability
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a new user or user namespace clears it
    if os.getppid() != parent:  # the parent died before
        os._exit(1)
    parts["landlock"] = restrict_files(readable, [_NULL, *([policy.scratch] if policy.scratch else [])])
    parts["seccomp"] = install_filter(os.getpid())
    return tuple(part for part in PARTS if not parts[part])


def separate() -> tuple[str, ...]:
    """Move this process into namespaces of its own, root as nobody, and return the parts that are missing.

    The process keeps its capabilities inside the namespaces, which each input's process drops. Its next child is the
    first process of the new PID namespace.
    """
    _readable()  # as long as this user can look
    is_apart = _separate_root() if os.geteuid() == 0 else _separate_user()
    return () if is_apart else ("user_namespace", "network_namespace", "pid_namespace")


def leave_files() -> tuple[str, ...]:
    """Leave all files of the host but those that Python code needs; return the part that is missing."""
    return () if empty_root.enter((*_readable(), _NULL)) else ("mount_namespace",)


@cache
def _readable() -> list[str]:
    return [path for path in (*_python(), *_SYSTEM) if os.access(path, os.R_OK)]


def _separate_user() -> bool:
    user, group = os.geteuid(), os.getegid()
    if not unshare(_APART):
        return False
    prctl(_PR_SET_DUMPABLE, 1)  # or the files of this process belonged to root
    maps = {"setgroups": "deny", "uid_map": f"{_NOBODY} {user} 1", "gid_map": f"{_NOBODY} {group} 1"}
    return _map_users(os.getpid(), maps)


def _separate_root() -> bool:
    """Become nobody in a namespace that knows root and the owners of the code too.

    So a capability can reach code that only they may read. A process outside writes the numbers. Limits on threads
    count for nobody, and not for root.
    """
    owners = [Path(path).stat() for path in _readable()]
    users = {0, _NOBODY, *(owner.st_uid for owner in owners)}
    groups = {0, _NOBODY, *(owner.st_gid for owner in owners)}
    process, (waiting, released) = os.getpid(), os.pipe()
    if (helper := os.fork()) == 0:
        os.close(released)
        os.read(waiting, 1)
        os._exit(not _map_users(process, {"uid_map": _identity_map(users), "gid_map": _identity_map(groups)}))
    is_apart = unshare(_APART)
    os.close(released)
    os.close(waiting)
    _, status = os.waitpid(helper, 0)
    if not is_apart or status:
        return False
    held = _held_capabilities()
    prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    return _set_capabilities(*held)


def _identity_map(ids: Iterable[int]) -> str:
    """Return a map in which numbers are the same inside and outside."""
    return "".join(f"{number} {number} 1\n" for number in ids)


def _map_users(process: int, maps: Mapping[str, str]) -> bool:
    """Give users numbers in the new user namespace of a process: others can create no files there."""
    try:
        for name, text in maps.items():
            Path("/proc", str(process), name).write_text(text)
    except OSError:
        return False
    return True


def confine_input(limits: InputLimits) -> tuple[str, ...]:
    """Confine this process, which was forked for one input; return the parts that are missing."""
    parts = {"mount_namespace": empty_root.mount_scratch(limits.disk_bytes)}
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_NPROC, limits.threads),
        (resource.RLIMIT_CPU, limits.cpu_seconds + 1),
        (resource.RLIMIT_AS, resource_limits.address_space() + limits.memory_bytes),
    ):
        resource_limits.lower(which, value, for_good=True)
    resource_limits.lower(resource.RLIMIT_CPU, limits.cpu_seconds)  # SIGXCPU, a second before SIGKILL
    parts["capabilities"] = _keep_capabilities(_needed_capability(_readable(), None))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)
    restrict_files(_readable(), [_NULL, empty_root.SCRATCH])  # a further layer, where the kernel has it
    parts["seccomp"] = install_filter(os.getpid())
    return tuple(part for part in FORK_PARTS if not parts.get(part, True))


def _python() -> Iterator[str]:
    """Yield where the interpreter, the installed packages and our own code are.

    Of other entries of `sys.path` only our packages count: a checkout or a working folder may hold the data folder.
    """
    yield from {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    yield from filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    for entry in map(Path, filter(None, sys.path)):
        if any(entry.glob("*.dist-info")):
            yield str(entry)
        else:
            yield from (str(entry / package) for package in _OURS)


def _own_user(readable: list[str], scratch: str | None) -> bool:
    """Let root become the user `nobody`, else the owner of our code; return False where neither could reach the files.

    Return False too where root may not become another user.
    """
    code = Path(__file__).parents[1].stat()
    users = ((_NOBODY, _NOBODY), (code.st_uid, code.st_gid))
    return any(_become(uid, gid, readable, scratch) for uid, gid in users if uid)


def _become(uid: int, gid: int, readable: list[str], scratch: str | None) -> bool:
    groups = os.getgroups()
    try:
        os.setgroups([])
        if scratch:
            os.chown(scratch, uid, gid)
        os.setegid(gid)
        os.seteuid(uid)
    except OSError:
        return False
    if _reaches(readable, scratch):
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return True
    os.seteuid(0)
    os.setegid(0)
    os.setgroups(groups)
    if scratch:
        os.chown(scratch, 0, 0)
    return False


def _reaches(readable: list[str], scratch: str | None) -> bool:
    """Return whether the effective user and capabilities suffice to read `readable` and to write to `scratch`."""
    needed = [(path, os.R_OK) for path in readable] + ([(scratch, os.W_OK)] if scratch else [])
    return all(os.access(path, mode, effective_ids=True) for path, mode in needed)


def _needed_capability(readable: list[str], scratch: str | None) -> int:
    """Return the capability that root needs to reach the files, as a bit; 0 where it needs none."""
    effective, permitted, *others = _held_capabilities()
    try:
        for bit in (0, _DAC_READ_SEARCH, _DAC_OVERRIDE):
            if bit & permitted == bit and _set_capabilities(bit, permitted, *others) and _reaches(readable, scratch):
                return bit
    finally:
        _set_capabilities(effective, permitted, *others)
    return 0


def _counts_by_namespace() -> bool:
    """Return whether the kernel counts a user's threads in each user namespace apart, as Linux 5.14 and later do."""
    major, minor = (int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return (major, minor) >= (5, 14)


def _limit(policy: Policy, *, alone: bool) -> None:
    """Set what can only be lowered; limit the threads only where those of no other process count."""
    resource_limits.lower(resource.RLIMIT_CORE, 0, for_good=True)
    resource_limits.lower(resource.RLIMIT_FSIZE, policy.file_bytes, for_good=True)
    resource_limits.lower(resource.RLIMIT_NOFILE, _OPEN_FILES, for_good=True)
    if alone:
        resource_limits.lower(resource.RLIMIT_NPROC, _THREADS, for_good=True)
    if policy.memory_bytes:
        resource_limits.lower(resource.RLIMIT_AS, policy.memory_bytes, for_good=True)


def _keep_capabilities(kept_bits: int) -> bool:
    """Drop all capabilities but those in `kept_bits`; return whether the kernel did."""
    for capability in range(_MAX_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # forbidden to those who have none anyway
    return _set_capabilities(kept_bits, kept_bits)


def _held_capabilities() -> tuple[int, ...]:
    """Return effective, permitted and inheritable capabilities: the lower words, then the upper."""
    held = ctypes.create_string_buffer(24)
    libc.capget(_capability_header(), held)
    return struct.unpack("=6I", held.raw)


def _set_capabilities(*words: int) -> bool:
    """Set effective, permitted and inheritable capabilities: the lower words, then the upper; others are 0."""
    data = struct.pack("=6I", *words, *(0,) * (6 - len(words)))
    return bool(libc.capset(_capability_header(), ctypes.create_string_buffer(data, len(data))) == 0)


def _capability_header() -> bytes:
    return struct.pack("=Ii", _CAPABILITIES_VERSION, 0)


# Files: Landlock.

_ASK_VERSION: Final = 1  # a flag of landlock_create_ruleset
_PATH_BENEATH: Final = 1  # a kind of rule

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READABLE: Final = _READ_FILE | _READ_DIR
#: Rights that a rule on a file, not a folder, may name.
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
#: Rights on files by ABI: the first so many bits.
_FILE_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP: Final = 0b11  # bind, connect
_TCP_SINCE: Final = 4
_SCOPES: Final = 0b11  # abstract Unix sockets, signals
_SCOPES_SINCE: Final = 6


def landlock_abi() -> int:
    """Return the kernel's ABI version; 0 where Landlock is missing or off."""
    try:
        return call("landlock_create_ruleset", None, 0, _ASK_VERSION)
    except OSError:
        return 0


def restrict_files(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Deny this thread every file that is not below a path of `readable` or `writable`; paths must exist.

    Return whether the kernel enforces it. `PR_SET_NO_NEW_PRIVS` must be set. Nothing can be executed.
    """
    version = landlock_abi()
    if version == 0:
        return False
    handled = (1 << _FILE_BITS[min(version, max(_FILE_BITS))]) - 1
    tcp = _TCP if version >= _TCP_SINCE else 0
    scopes = _SCOPES if version >= _SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", handled, tcp, scopes)
    all_but_execute = handled & ~(_EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK | _IOCTL_DEV)
    try:
        ruleset = call("landlock_create_ruleset", attributes, len(attributes), 0)
        try:
            for path in readable:
                _allow(ruleset, path, _READABLE)
            for path in writable:
                _allow(ruleset, path, all_but_execute)
            call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError:
        return False
    return True


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        call("landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
