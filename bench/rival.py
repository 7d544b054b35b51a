"""Run another tool in a temporary environment that shares the installed packages: the same torch and model library.

    this .venv ◀──── a .pth file ──── DIR (venv) ◀──── pip: what is missing there, nothing twice

The tool runs in a process of its own, at the niceness of workers, and prints its figures as its last line.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.up.procfile import CODE
from workers import NICENESS

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}


class NotToBeHad(Exception):
    """A package that is compared with cannot be installed here."""


def install(folder: Path, packages: Sequence[str]) -> Path:
    """Return the Python of an environment with these packages. Raises an error where they cannot be installed."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    ours = sysconfig.get_path("purelib")
    theirs = sysconfig.get_path("purelib", "venv", vars={"base": str(folder)})
    (Path(theirs) / "ours.pth").write_text(f"{ours}\n")
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        *packages,
    ]  # uv does not follow a .pth file
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        raise NotToBeHad(f"{', '.join(packages)}: {lines[-1]}")
    return python


def run(
    words: Sequence[str | Path],
    *,
    python: Path | None = None,
    given: str = "",
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Return the last line that a Python process prints, as JSON. `given` is its standard input."""
    command = ["nice", "-n", str(NICENESS), str(python or sys.executable), *(str(word) for word in words)]
    done = subprocess.run(
        command,
        env=os.environ | _OFFLINE | dict(environment or {}),
        cwd=CODE,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
