"""The file that a process touches while it works, and the health checks that look at it."""

import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from jobs.fleet.health import give_sign, sign_file

COMPOSE = Path(__file__).parents[4] / "deploy" / "compose.yaml"
#: The user of the image.
USER = 10001


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def check(role: str, folder: Path) -> int:
    """Run the health check of a service of Compose as its shell does, with the files of a folder; return its status."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    tests = [service.get("healthcheck", {}).get("test", []) for service in services.values()]
    (command,) = {test[1] for test in tests if f"nightmill-{USER}/{role} " in str(test)}
    here = command.replace("$$", "$").replace(f"/tmp/nightmill-{USER}", str(folder / f"nightmill-{os.getuid()}"))
    return subprocess.run(["sh", "-c", here], capture_output=True, check=False).returncode


@pytest.mark.parametrize("role", ["dispatcher", "cpu", "evaluate", "gpu", "embed", "finetune", "io"])
def test_a_process_is_well_while_it_gives_signs(role: str, folder: Path) -> None:
    assert check(role, folder) == 1

    give_sign(role)
    assert check(role, folder) == 0

    old = time.time() - 60
    os.utime(sign_file(role), (old, old))
    assert check(role, folder) == 1


def test_a_folder_that_takes_no_files_ends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "file"))

    give_sign("cpu")

    assert not sign_file("cpu").exists()
