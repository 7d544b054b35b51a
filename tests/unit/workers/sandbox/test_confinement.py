"""Which files a confined process may read."""

import sys
import sysconfig
from pathlib import Path

import pytest

from workers.sandbox import confinement


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
