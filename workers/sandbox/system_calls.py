"""System calls on x86_64 and aarch64: their numbers, a way to make them, and the filter that refuses them.

Numbers above 423 are the same on both machines. `None`: the machine has no such call.

The filter is a program in classic BPF, which the kernel runs before each system call (seccomp):

    of another architecture, such as 32-bit calls on x86_64      the kernel ends the process
    newer than `NEWEST`, or of the x32 ABI                       ENOSYS, as if the kernel did not have the call
    in `REFUSED`, or with arguments that the sandbox refuses     EPERM
    any other                                                    allowed

`workers.sandbox.confinement` installs it, as the last of the parts of the sandbox.
"""

import ctypes
import errno
import os
import platform
import struct
from typing import Final

#: The newest call for which somebody decided whether the sandbox needs it (Linux 6.17).
NEWEST: Final = 469
#: The column of the tables below, by machine.
MACHINES: Final = {"x86_64": 0, "aarch64": 1}

Numbers = tuple[int | None, int | None]

#: Calls of which the sandbox refuses some arguments, and calls that it needs itself.
KNOWN: Final[dict[str, Numbers]] = {
    "clone": (56, 220), "clone3": (435, 435), "socketpair": (53, 199), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261), "fcntl": (72, 25), "ioctl": (16, 29), "prctl": (157, 167), "seccomp": (317, 277),
    "sched_setaffinity": (203, 122),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip

#: Calls that the sandbox refuses whatever their arguments.
REFUSED: Final[dict[str, Numbers]] = {
    # the network and Unix sockets
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
    # new programs, and other processes of the same user
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # namespaces and mounts
    "setns": (308, 268), "unshare": (272, 97), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # large or privileged parts of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "inotify_add_watch": (254, 27), "lookup_dcookie": (212, 18), "syslog": (103, 116), "acct": (163, 89),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "memfd_secret": (447, 447), "personality": (135, 92), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "_sysctl": (156, None), "nfsservctl": (180, 42),
    # what Landlock cannot restrict: modes, owners, times and attributes of files that are not even readable
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "truncate": (76, 45), "chmod": (90, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "mknod": (133, None), "mknodat": (259, 33),
    # files in memory beside the limits on memory and disk
    "memfd_create": (319, 279),
    # System V and POSIX memory and messages of the same user, such as PostgreSQL's
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192),
    "semctl": (66, 191), "mq_open": (240, 180), "mq_unlink": (241, 181),
}  # fmt: skip

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def number(name: str, machine: str) -> int | None:
    """Return the number of the call `name` on `machine`, or None where there is no such call."""
    return (KNOWN.get(name) or REFUSED[name])[MACHINES[machine]]


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

_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_CLONE_THREAD: Final = 0x00010000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPES = 1, 1, 0xF
#: fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX. ioctl: FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX.
_SIGNALS_BY_FCNTL: Final = (8, 10, 15)
_SIGNALS_BY_IOCTL: Final = (0x8901, 0x8902, 0x5412, 0x541C)
#: prctl: PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_PTRACER. They would undo that the process ends with its parent, and
#: that no other process of the user may read its memory.
_BY_PRCTL: Final = (1, 4, 0x59616D61)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
#: Names of calls, the argument that decides, and its values.
Rules = tuple[tuple[str, int, tuple[int, ...]], ...]


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
    own: Rules = tuple((name, 0, (pid,)) for name in ("kill", "tgkill"))
    own += tuple((name, 0, (0, pid)) for name in ("prlimit64", "sched_setaffinity"))
    foreign: Rules = (
        ("fcntl", 1, _SIGNALS_BY_FCNTL),
        ("ioctl", 1, _SIGNALS_BY_IOCTL),
        ("prctl", 0, _BY_PRCTL),
    )
    made: list[Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_IS, 1, 0, _ARCHITECTURES[machine]), _end(_KILL)]
    made += [(_LOAD, 0, 0, _NUMBER_AT), (_IS_ABOVE, 0, 1, NEWEST), _end(_UNKNOWN)]
    for name, argument, values in own:
        made += _block(machine, name, [_argument(argument), *_each(values, _ALLOW), _end(_REFUSE)])
    for name, argument, values in foreign:
        made += _block(machine, name, [_argument(argument), *_each(values, _REFUSE), _end(_ALLOW)])
    made += _block(machine, "clone", [_argument(0), (_HAS_BIT, 0, 1, _CLONE_THREAD), _end(_ALLOW), _end(_REFUSE)])
    made += _block(machine, "clone3", [_end(_UNKNOWN)])  # its flags cannot be seen: libraries then use clone
    made += _block(machine, "socketpair", _stream_pair())
    for name in REFUSED:
        made += _block(machine, name, [_end(_REFUSE)])
    return [*made, _end(_ALLOW)]


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


def _each(values: tuple[int, ...], result: int) -> list[Instruction]:
    """Return instructions that end the program with `result` if the loaded argument is one of `values`."""
    return [instruction for value in values for instruction in ((_IS, 0, 1, value), _end(result))]


def _argument(n: int) -> Instruction:
    """Return the instruction that loads the lower half of argument `n`: these calls take integers of 32 bits."""
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * n


def _end(result: int) -> Instruction:
    return _RETURN, 0, 0, result
