"""Refuse system calls that a confined process has no use for, by a filter in classic BPF.

A foreign machine's calls (32 bit) end the process; x32 and calls newer than `calls.NEWEST` do not exist (ENOSYS);
refused calls fail with EPERM; all others are allowed.
"""

import ctypes
import errno
import platform
import struct
from typing import Final

from workers.sandbox.calls import MACHINES, NEWEST, REFUSED, call, number

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
#: prctl: PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_PTRACER.
_BONDS: Final = (1, 4, 0x59616D61)

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
#: Names of calls, the argument that decides, and its values.
Rules = tuple[tuple[str, int, tuple[int, ...]], ...]


def install(pid: int) -> bool:
    """Install the filter for all threads of this process, whose number is `pid`; return whether it is in force."""
    machine = platform.machine()
    if machine not in MACHINES:
        return False
    packed = b"".join(struct.pack("=HBBI", *one) for one in program(machine, pid))
    filters = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(packed) // 8, ctypes.addressof(filters))
    try:
        return call("seccomp", _SET_MODE_FILTER, _ALL_THREADS, header) == 0
    except OSError:
        return False


def program(machine: str, pid: int) -> list[Instruction]:
    """Return the filter for `machine`. The process `pid` may send signals to itself alone."""
    own: Rules = tuple((name, 0, (pid,)) for name in ("kill", "tgkill"))
    own += tuple((name, 0, (0, pid)) for name in ("prlimit64", "sched_setaffinity"))
    foreign: Rules = ("fcntl", 1, _SIGNALS_BY_FCNTL), ("ioctl", 1, _SIGNALS_BY_IOCTL), ("prctl", 0, _BONDS)
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
    """Allow two ends that are connected to each other, which event loops use, and nothing that takes an address."""
    family = [_argument(0), (_IS, 1, 0, _AF_UNIX), _end(_REFUSE)]
    kind: list[Instruction] = [_argument(1), (_AND, 0, 0, _SOCK_TYPES), *_each((_SOCK_STREAM,), _ALLOW)]
    return [*family, *kind, _end(_REFUSE)]


def _block(machine: str, name: str, body: list[Instruction]) -> list[Instruction]:
    """Run `body`, which ends the program, for the call `name`."""
    found = number(name, machine)
    return [] if found is None else [(_IS, 0, len(body), found), *body]


def _each(values: tuple[int, ...], result: int) -> list[Instruction]:
    return [one for value in values for one in ((_IS, 0, 1, value), _end(result))]


def _argument(n: int) -> Instruction:
    """Load the lower half of an argument: these calls take integers of 32 bit."""
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * n


def _end(result: int) -> Instruction:
    return _RETURN, 0, 0, result
