"""Code that breaks out on purpose: what the sandbox refuses, and what each of its parts refuses alone.

What this kernel should have is asked of the kernel's own files and of util-linux, not of the sandbox.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from workers.sandbox.child import environment
from workers.sandbox.confinement import PARTS

ESCAPEE = Path(__file__).with_name("escapee.py")
MEMORY_BYTES = 3 << 30

FILES = (
    "read operator.key", "read the database", "list the data folder", "read the environment of another process",
    "read the memory of another process", "write beside the scratch folder", "truncate the database",
    "remove operator.key",
)  # fmt: skip
SOCKETS = ("connect to the broker's socket", "connect to an abstract socket", "connect by TCP")
SIGNALS = ("signal another process", "signal the parent", "have another process signalled")
PROGRAMS = ("fork", "start a program", "become another program")
KERNEL = (
    "io_uring", "bpf", "keyctl", "add_key", "perf", "userfaultfd", "process_vm_readv", "pidfd_open", "mount", "unshare",
    "shared memory", "take the host's places for asynchronous input", "write all disks", "lock a file",
    "evict a file from memory", "send to a message queue", "list mounts",
)  # fmt: skip
CALLS = (
    *SOCKETS, "get the network back", "make a pair of datagram sockets", "trace another process", *SIGNALS,
    "signal everybody", "limit another process", *PROGRAMS, "outlive the parent", "change the mode of operator.key",
    "truncate the database", *KERNEL,
)  # fmt: skip
GOOD = (
    "start a thread", "import a module", "write to the scratch folder", "make a pair of streams",
    "draw a random number", "signal itself",
)  # fmt: skip
#: The last two are of a namespace in which there is nothing.
REFUSALS = ("EPERM", "EACCES", "ECONNREFUSED", "ENETUNREACH")


@dataclass(frozen=True)
class Report:
    missing: list[str]
    outcomes: dict[str, str]
    has_written: bool

    def done(self, *deeds: str) -> dict[str, str]:
        """Return which of these calls were not refused."""
        return {name: self.outcomes[name] for name in deeds if self.outcomes[name] not in REFUSALS}


class Scene:
    """A data folder, a broker, another process and a parent, each within reach of code without a sandbox."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.scratch = folder / "scratch"
        self.data.mkdir()
        self.scratch.mkdir()
        self.servers = [socket.socket(socket.AF_UNIX) for _ in range(2)] + [socket.socket()]
        self.abstract = f"nightmill-{os.getpid()}"
        for server, address in zip(
            self.servers, (str(self.data / "broker.sock"), f"\0{self.abstract}", ("127.0.0.1", 0)), strict=True
        ):
            server.bind(address)
            server.listen(64)
        self.network = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.victim = subprocess.Popen(["sleep", "600"], env={"NIGHTMILL_SECRET": "secret"})

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        os.close(self.network)
        for server in self.servers:
            server.close()

    def report(self, *deeds: str, without: tuple[str, ...] = (), memory_bytes: int = MEMORY_BYTES) -> Report:
        """Let a new process try the deeds, in a sandbox without some of its parts."""
        (self.data / "written").unlink(missing_ok=True)
        for name in ("operator.key", "nightmill.db"):
            (self.data / name).write_bytes(b"secret")
        facts: dict[str, Any] = {
            "deeds": deeds, "without": without, "memory_bytes": memory_bytes, "parent": os.getpid(),
            "key": str(self.data / "operator.key"), "database": str(self.data / "nightmill.db"), "data": str(self.data),
            "outside": str(self.data / "written"), "scratch": str(self.scratch), "victim": self.victim.pid,
            "broker": str(self.data / "broker.sock"), "abstract": self.abstract, "network": self.network,
            "port": self.servers[2].getsockname()[1],
        }  # fmt: skip
        ran = subprocess.run(
            [sys.executable, "-P", str(ESCAPEE), json.dumps(facts)],
            env=environment(), pass_fds=[self.network], capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr.decode()
        return Report(**json.loads(ran.stdout), has_written=(self.data / "written").exists())


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """In a folder that every user can reach: a sandbox that root starts may belong to nobody."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = Scene(Path(folder))
        yield made
        made.close()


@pytest.fixture(scope="module")
def whole(scene: Scene) -> Report:
    """Of the sandbox as it is here."""
    return scene.report(*FILES, *CALLS, "a call of x32", *GOOD)


# What this kernel should have, by other witnesses than the sandbox


def has_landlock() -> bool:
    """Read the kernel's list of security modules; where it is not mounted, mount it for a moment out of sight."""
    modules = Path("/sys/kernel/security/lsm")
    if modules.exists():
        return "landlock" in modules.read_text().split(",")
    mount = "mount -t securityfs none /sys/kernel/security && cat /sys/kernel/security/lsm"
    told = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, check=False)
    if told.returncode != 0:
        pytest.skip("the kernel's security modules cannot be listed here")
    return "landlock" in told.stdout.split(",")


def has_namespaces() -> bool:
    return subprocess.run(["unshare", "-Un", "true"], capture_output=True, check=False).returncode == 0


def is_filtered() -> bool:
    """Return whether a filter above this process, as in containers, refuses Landlock's calls."""
    return "Seccomp:\t0" not in Path("/proc/self/status").read_text()


def test_parts_that_this_kernel_has_are_in_force_and_others_are_named(whole: Report) -> None:
    assert {*whole.missing} <= {*PARTS}
    assert not {"seccomp", "capabilities"} & {*whole.missing}, "every supported kernel has them"
    assert has_namespaces() is ("user_namespace" not in whole.missing)
    if has_namespaces():
        assert "network_namespace" not in whole.missing


def test_landlock_is_in_force_where_the_kernel_lists_it(whole: Report) -> None:
    if is_filtered():
        pytest.skip("a container's filter decides")
    assert has_landlock() is ("landlock" not in whole.missing)


def test_root_retains_its_user_only_if_code_is_unreadable_to_others(whole: Report) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    readable = subprocess.run([*nobody, "cat", os.__file__, __file__], capture_output=True, check=False)
    assert ("own_user" in whole.missing) is (os.geteuid() == 0 and readable.returncode != 0)


# What is refused


def test_every_deed_is_possible_without_a_sandbox(scene: Scene) -> None:
    """Otherwise the other tests would show nothing."""
    harmless = (*FILES, *SOCKETS, *SIGNALS, *PROGRAMS[:2], "limit another process", "outlive the parent")
    last = ("truncate the database", "remove operator.key")
    report = scene.report(*sorted(harmless, key=last.__contains__), without=("all",))

    assert set(report.outcomes.values()) == {"done"}
    assert report.has_written


def test_nothing_is_read_or_written_outside(whole: Report) -> None:
    if "landlock" in whole.missing:
        assert is_filtered() or not has_landlock()
        pytest.skip("this kernel has no Landlock, and the report says so")

    assert whole.done(*FILES) == {}
    assert not whole.has_written


def test_no_socket_process_or_part_of_the_kernel_is_reached(whole: Report) -> None:
    assert whole.done(*CALLS) == {}
    assert {whole.outcomes[name] for name in KERNEL} == {"EPERM"}
    assert whole.outcomes["a call of x32"] == "ENOSYS"


def test_operations_needed_by_code_succeed(whole: Report) -> None:
    assert {whole.outcomes[name] for name in GOOD} == {"done"}


def test_files_are_refused_without_seccomp(scene: Scene, whole: Report) -> None:
    """And so are other processes and the network, by Landlock and namespaces."""
    report = scene.report(*FILES, "trace another process", "get the network back", without=("seccomp",))

    assert set(report.missing) == {*whole.missing, "seccomp"}
    if "landlock" not in report.missing:
        assert report.done(*FILES, "trace another process") == {}
    assert report.done("get the network back") == {}


def test_signals_are_scoped_without_seccomp_since_the_sixth_abi(scene: Scene) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    report = scene.report("connect by TCP", "connect to an abstract socket", *SIGNALS, without=("seccomp",))

    if release >= (6, 12) and "landlock" not in report.missing:
        assert report.done("connect by TCP", "connect to an abstract socket", *SIGNALS[:2]) == {}
    if "network_namespace" not in report.missing:
        assert report.done("connect by TCP", "connect to an abstract socket") == {}


def test_calls_are_refused_without_landlock_and_namespaces(scene: Scene) -> None:
    report = scene.report(*CALLS, without=("landlock", "namespaces"))

    assert {"landlock", "user_namespace", "network_namespace"} <= {*report.missing}
    assert {report.outcomes[name] for name in CALLS} == {"EPERM"}


def test_a_bomb_of_processes_or_threads_is_bounded(scene: Scene) -> None:
    report = scene.report("fork", "threads", memory_bytes=2 << 30)

    assert report.outcomes["fork"] == "EPERM"
    assert int(report.outcomes["threads"]) < (1000 if "own_user" in report.missing else 257)


def test_memory_is_bounded_for_good(scene: Scene) -> None:
    assert scene.report("memory", memory_bytes=512 << 20).outcomes == {"memory": "MemoryError"}
