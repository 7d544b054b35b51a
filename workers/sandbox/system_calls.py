"""System calls on x86_64 and aarch64: their numbers, a way to make them, and the filter that allows a part of them.

Numbers above 423 are the same on both machines. `None`: the machine has no such call.

The filter is a program in classic BPF, which the kernel runs before each system call (seccomp):

    of another architecture, such as 32-bit calls on x86_64      the kernel ends the process
    newer than `NEWEST`, or of the x32 ABI                       ENOSYS, as if the kernel did not have the call
    in `CHECKED`                                                 its arguments decide
    in `ALLOWED`                                                 allowed
    any other                                                    EPERM

`workers.sandbox.confinement` installs it, as the last of the parts of the sandbox.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from typing import Final

#: The newest call for which somebody decided whether the sandbox needs it (Linux 6.17).
NEWEST: Final = 469
#: The column of the tables below, by machine.
MACHINES: Final = {"x86_64": 0, "aarch64": 1}

Numbers = tuple[int | None, int | None]

#: What computing and reading given files takes. Modes, owners, times and attributes of files cannot be changed by it.
ALLOWED: Final[dict[str, Numbers]] = {
    # memory and threads
    "futex": (202, 98), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "madvise": (28, 233),
    "brk": (12, 214), "mremap": (25, 216), "rseq": (334, 293), "membarrier": (324, 283), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "futex_waitv": (449, 449), "futex_wake": (454, 454), "futex_wait": (455, 455),
    "futex_requeue": (456, 456), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "arch_prctl": (158, None), "exit": (60, 93), "exit_group": (231, 94),
    # open files, pipes and the two ends of a stream
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "fstat": (5, 80), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70),
    "preadv2": (327, 286), "pwritev2": (328, 287), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None),
    "pipe2": (293, 59), "ftruncate": (77, 46), "fallocate": (285, 47), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "close_range": (436, 436), "getdents": (78, None), "getdents64": (217, 61),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441), "eventfd": (284, None), "eventfd2": (290, 19), "sendto": (44, 206),
    "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212), "shutdown": (48, 210), "getsockname": (51, 204),
    "getpeername": (52, 205), "getsockopt": (55, 209),
    # files by their paths
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None), "stat": (4, None),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "umask": (95, 166), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    # signals and time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "pause": (34, None), "alarm": (37, None), "getitimer": (36, 102),
    "setitimer": (38, 103), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    # facts of this process and the machine
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "getpgrp": (111, None), "getrusage": (98, 165), "getrlimit": (97, 163),
    "setrlimit": (160, 164), "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179), "wait4": (61, 260),
    "waitid": (247, 95),
}  # fmt: skip

#: Calls of which the filter looks at the arguments, or that it answers itself.
CHECKED: Final[dict[str, Numbers]] = {
    "clone": (56, 220), "clone3": (435, 435), "socketpair": (53, 199), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "fcntl": (72, 25), "ioctl": (16, 29),
    "prctl": (157, 167), "fsync": (74, 82), "fdatasync": (75, 83), "msync": (26, 227),
}  # fmt: skip

#: Calls by which the sandbox is made, before the filter is there.
_SETUP: Final[dict[str, Numbers]] = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "mount_setattr": (442, 442),
    "seccomp": (317, 277), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}  # fmt: skip
#: All calls that the sandbox makes or allows.
USED: Final = ALLOWED | CHECKED | _SETUP

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def number(name: str, machine: str) -> int | None:
    """Return the number of the call `name` on `machine`, or None where there is no such call."""
    return USED[name][MACHINES[machine]]


def call(name: str, *arguments: object) -> int:
    """Make a system call and return its result. Integers are passed as unsigned longs.

    Raises: OSError, also on a machine whose numbers are not known.
    """
    machine = platform.machine()
    call_number = number(name, machine) if machine in MACHINES else None
    if call_number is None:
        raise OSError(f"No number of {name} is known on {machine}.")
    result: int = libc.syscall(
        ctypes.c_long(call_number),
        *(ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, argument: int = 0) -> None:
    """Set an attribute of this process; `option` is a `PR_…` constant of Linux. Raises: OSError."""
    if libc.prctl(option, *(ctypes.c_ulong(value) for value in (argument, 0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unshare(flags: int) -> bool:
    """Move this process into new namespaces and return whether the kernel allowed it."""
    return bool(libc.unshare(ctypes.c_int(flags)) == 0)


# The filter.

_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # as <linux/audit.h> has them
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IS, _IS_ABOVE, _HAS_BIT = 0x15, 0x25, 0x45
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERROR: Final = 0x00050000
_REFUSE: Final = _ERROR | errno.EPERM
_UNKNOWN: Final = _ERROR | errno.ENOSYS
_DONE: Final = _ERROR  # with no error: the call returns 0, and nothing happens

_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_CLONE_THREAD: Final = 0x00010000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 1, 1, 0xF
#: Commands of fcntl: F_DUPFD to F_SETFL, the locks of SQLite, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS.
_FCNTL: Final = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032, 1034)
#: Requests of ioctl: TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTL: Final = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
#: Options of prctl: PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA.
_PRCTL: Final = (3, 15, 16, 0x53564D41)
#: Calls that wait for a disk: nothing that the sandbox writes has to outlive the machine.
_FLUSHES: Final = ("fsync", "fdatasync", "msync")

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def install_filter(pid: int) -> bool:
    """Install the filter for all threads of this process, whose id is `pid`; return whether it is in force."""
    machine = platform.machine()
    if machine not in MACHINES:
        return False
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in filter_program(machine, pid))
    filters = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(packed) // 8, ctypes.addressof(filters))
    try:
        return call("seccomp", _SET_MODE_FILTER, _ALL_THREADS, header) == 0
    except OSError:
        return False


def filter_program(machine: str, pid: int) -> list[Instruction]:
    """Return the filter for `machine`. The process `pid` may signal and limit itself alone."""
    values = {
        "kill": (0, (pid,)),
        "tgkill": (0, (pid,)),
        "prlimit64": (0, (0, pid)),
        "sched_setaffinity": (0, (0, pid)),
        "fcntl": (1, _FCNTL),
        "ioctl": (1, _IOCTL),
        "prctl": (0, _PRCTL),
    }
    made: list[Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_IS, 1, 0, _ARCHITECTURES[machine]), _end(_KILL)]
    made += [(_LOAD, 0, 0, _NUMBER_AT), (_IS_ABOVE, 0, 1, NEWEST), _end(_UNKNOWN)]
    for name, (argument, allowed) in values.items():
        made += _block(machine, name, [_argument(argument), *_each(allowed, _ALLOW), _end(_REFUSE)])
    made += _block(machine, "clone", [_argument(0), (_HAS_BIT, 0, 1, _CLONE_THREAD), _end(_ALLOW), _end(_REFUSE)])
    made += _block(machine, "clone3", [_end(_UNKNOWN)])  # its flags cannot be seen: libraries then use clone
    made += _block(machine, "socketpair", _stream_pair())
    for name in _FLUSHES:
        made += _block(machine, name, [_end(_DONE)])
    numbers = (number(name, machine) for name in ALLOWED)
    return [*made, *_each((call_number for call_number in numbers if call_number is not None), _ALLOW), _end(_REFUSE)]


def _stream_pair() -> list[Instruction]:
    """Allow `socketpair` for Unix stream sockets alone, and refuse its other kinds.

    Event loops need the two ends, which are connected to each other and cannot be given an address.
    """
    family = [_argument(0), (_IS, 1, 0, _AF_UNIX), _end(_REFUSE)]
    kind: list[Instruction] = [_argument(1), (_AND, 0, 0, _SOCK_TYPES), *_each((_SOCK_STREAM,), _ALLOW)]
    return [*family, *kind, _end(_REFUSE)]


def _block(machine: str, name: str, body: list[Instruction]) -> list[Instruction]:
    """Return instructions that run `body` for the call `name`, and skip it for any other. `body` ends the program."""
    call_number = number(name, machine)
    return [] if call_number is None else [(_IS, 0, len(body), call_number), *body]


def _each(values: Iterable[int], result: int) -> list[Instruction]:
    """Return instructions that end the program with `result` if the loaded argument is one of `values`."""
    return [instruction for value in values for instruction in ((_IS, 0, 1, value), _end(result))]


def _argument(n: int) -> Instruction:
    """Return the instruction that loads the lower half of argument `n`: these calls take integers of 32 bits."""
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * n


def _end(result: int) -> Instruction:
    return _RETURN, 0, 0, result
