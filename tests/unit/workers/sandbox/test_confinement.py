"""Which files a confined process may read, and how its threads are limited."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers.sandbox import confinement, forking
from workers.sandbox.child import environment


def test_a_folder_of_code_is_not_readable_whole_unless_packages_are_installed_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout or the working folder, which Python puts on its path, may hold the data folder."""
    working, installed = tmp_path / "working", tmp_path / "installed"
    (working / ".nightmill").mkdir(parents=True)
    (installed / "msgspec-0.20.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["", str(working), str(installed)])

    found = set(confinement._python())

    assert {str(working / "jobs"), str(working / "workers"), str(installed)} <= found
    assert not {"", str(working), str(tmp_path)} & found


def test_neither_the_data_of_an_environment_nor_its_programs_are_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])

    found = set(confinement._python())

    assert sysconfig.get_path("stdlib") in found
    assert not {sys.prefix, sys.base_prefix, sysconfig.get_path("scripts")} & found


@pytest.mark.parametrize(
    "refusing",
    [
        "c.unshare = lambda _: False; c._own_user = lambda *_: True",
        "c.os.uname = lambda: SimpleNamespace(release='5.13.19-generic')",
    ],
    ids=["no user namespace", "Linux 5.13"],
)
def test_threads_are_not_limited_where_those_of_other_processes_count(refusing: str) -> None:
    """The limit would count each thread of the same user on the host, and good documents would be refused."""
    code = f"""
import os, resource
from types import SimpleNamespace
import workers.sandbox.confinement as c
{refusing}
before = resource.getrlimit(resource.RLIMIT_NPROC)
c.confine(c.Policy(""), os.getppid())
print(before == resource.getrlimit(resource.RLIMIT_NPROC))
"""

    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)

    assert ran.stdout == "True\n"


@pytest.mark.parametrize(
    ("release", "apart"),
    [("4.18.0-553.el8", False), ("5.13.19", False), ("5.14.0-427.el9", True), ("6.1", True), ("6.18.44-fc", True)],
)
def test_threads_are_counted_by_namespace_since_linux_5_14(
    release: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement.os, "uname", lambda: SimpleNamespace(release=release))

    assert confinement._counts_by_namespace() is apart


@pytest.mark.parametrize("written", [b"a score", b"", b"\1"])
def test_only_a_process_that_was_not_confined_counts_as_such(monkeypatch: pytest.MonkeyPatch, written: bytes) -> None:
    """Whatever a confined one writes: nothing, or what an unconfined one would."""
    limits = confinement.InputLimits(memory_bytes=0, disk_bytes=0, cpu_seconds=0, threads=0)

    def run() -> bytes:
        return forking.run_input(lambda: written, limits, descriptors=[], seconds=60.0, largest=100)

    monkeypatch.setattr(forking, "confine_input", lambda _: ("seccomp",))
    with pytest.raises(forking.Unconfined):
        run()
    monkeypatch.setattr(forking, "confine_input", lambda _: ())
    if written:
        assert run() == written
    else:
        with pytest.raises(forking.Ended):
            run()
