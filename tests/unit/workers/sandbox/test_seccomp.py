"""The filter, run by an interpreter of classic BPF for both machines: the kernel's own is of one alone."""

import errno
import re
from pathlib import Path

import pytest

from tests.unit.workers.sandbox.refused_calls import REFUSED
from workers.sandbox.system_calls import ALLOWED, CHECKED, MACHINES, NEWEST, USED, filter_program, number

PASSED = 0x7FFF0000
KILLED = 0x80000000
DONE = 0x00050000
REFUSAL = 0x00050000 | errno.EPERM
UNKNOWN = 0x00050000 | errno.ENOSYS
X86_64, AARCH64, I386, ARM = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028
ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}
PID = 4711
#: Of linux-libc-dev.
_HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


def verdict(machine: str, call: str | int, *arguments: int, architecture: int | None = None) -> int:
    """Run the program on one system call. As in the kernel, A is the accumulator."""
    of_call = number(call, machine) if isinstance(call, str) else call
    assert of_call is not None
    data = {0: of_call, 4: ARCHITECTURES[machine] if architecture is None else architecture}
    data |= {16 + 8 * n: value & 0xFFFFFFFF for n, value in enumerate((*arguments, *[0] * (6 - len(arguments))))}
    accumulator, at, made = 0, 0, filter_program(machine, PID)
    while True:
        code, jump_true, jump_false, operand = made[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = data[operand]
        elif code == 0x54:
            accumulator &= operand
        else:
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x45: bool(accumulator & operand)}[code]
            at += jump_true if holds else jump_false


@pytest.fixture(params=sorted(MACHINES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_calls_that_reach_beyond_the_process_are_refused(machine: str) -> None:
    numbers = {row[MACHINES[machine]] for row in REFUSED.values()} - {None}

    assert {verdict(machine, one) for one in numbers if one is not None} == {REFUSAL}
    assert len(numbers) > 100


def test_unlisted_system_calls_are_refused(machine: str) -> None:
    allowed, checked = ({number(name, machine) for name in table} for table in (ALLOWED, CHECKED))
    others = set(range(NEWEST + 1)) - allowed - checked

    assert {verdict(machine, one) for one in others} == {REFUSAL}
    assert {verdict(machine, one) for one in allowed if one is not None} == {PASSED}
    assert not USED.keys() & REFUSED.keys() - {"mount", "umount2", "pivot_root", "mount_setattr"}


def test_system_calls_needed_by_python_are_allowed(machine: str) -> None:
    numbers = {"x86_64": {"read": 0, "write": 1, "mmap": 9, "openat": 257, "futex": 202, "exit_group": 231}}
    numbers["aarch64"] = {"read": 63, "write": 64, "mmap": 222, "openat": 56, "futex": 98, "exit_group": 94}

    assert {verdict(machine, one) for one in numbers[machine].values()} == {PASSED}


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("kill", (PID, 9), PASSED),
        ("kill", (0, 9), REFUSAL),
        ("kill", (-1, 9), REFUSAL),
        ("kill", (PID + 1, 9), REFUSAL),
        ("tgkill", (PID, 1, 9), PASSED),
        ("tgkill", (1, 1, 9), REFUSAL),
        ("prlimit64", (0,), PASSED),
        ("prlimit64", (PID,), PASSED),
        ("prlimit64", (1,), REFUSAL),
        ("sched_setaffinity", (0,), PASSED),
        ("sched_setaffinity", (1,), REFUSAL),
        ("clone", (0x10000 | 0x100,), PASSED),  # a thread
        ("clone", (17,), REFUSAL),  # a process: SIGCHLD
        ("clone", (0x10000000 | 17,), REFUSAL),  # with a user namespace
        ("clone3", (), UNKNOWN),
        ("socketpair", (1, 1 | 0o2000000), PASSED),  # a stream, closed on exec
        ("socketpair", (1, 2), REFUSAL),
        ("socketpair", (2, 1), REFUSAL),
        ("fcntl", (3, 2), PASSED),
        *(("fcntl", (3, command), REFUSAL) for command in (8, 10, 15, 37, 1024, 1026)),  # signals, locks, leases
        ("ioctl", (0, 0x5401), PASSED),
        *(("ioctl", (0, request), REFUSAL) for request in (0x5412, 0x541C, 0x8901, 0x8902, 0x40049409)),
        ("prctl", (15,), PASSED),
        ("prctl", (1, 0), REFUSAL),
        ("prctl", (4, 1), REFUSAL),
        ("prctl", (0x59616D61,), REFUSAL),
        ("fsync", (3,), DONE),
        ("msync", (0, 1, 4), DONE),
    ],
)
def test_arguments_decide(machine: str, call: str, arguments: tuple[int, ...], expected: int) -> None:
    assert verdict(machine, call, *arguments) == expected


@pytest.mark.parametrize("architecture", [I386, ARM, 0])
def test_calls_of_another_machine_end_the_process(machine: str, architecture: int) -> None:
    assert verdict(machine, "prctl", 15, architecture=architecture) == KILLED


@pytest.mark.parametrize("call", [470, 600, 0x40000000, 0x40000000 | 41, 0xFFFFFFFF])
def test_calls_that_are_new_or_of_x32_do_not_exist(machine: str, call: int) -> None:
    assert verdict(machine, call) == UNKNOWN


def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    """Of calls that the installed headers know; the newest may be newer than they."""
    header = Path(_HEADERS[machine])
    if not header.exists():
        pytest.skip("Debian has the headers as linux-libc-dev")
    found = {
        name.removeprefix("3264_").removeprefix("_"): int(value)
        for name, value in re.findall(r"#define __NR_?(\w+) (\d+)", header.read_text())
    }
    ours = {name.removeprefix("_"): row[MACHINES[machine]] for name, row in {**USED, **REFUSED}.items()}
    differing = {name: (mine, found[name]) for name, mine in ours.items() if name in found and mine != found[name]}

    assert differing == {}
    assert len(found.keys() & ours.keys()) > 100
