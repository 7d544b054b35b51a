"""Wheels and sdists of the checkout, made with whatever this machine's pip is told about indexes and wheel folders."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.system import ROOT, eventually, free_port

_UV = 'pip=("$1" -m pip --disable-pip-version-check); . .ci/registries; shift; exec "$@"'


def uv(*words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run uv in the checkout."""
    program = Path(sys.executable).with_name("uv")
    command = ["bash", "-ec", _UV, "uv", sys.executable, program, *words]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=800, check=False)


@contextmanager
def serving(code: Path, folder: Path) -> Iterator[str]:
    """Serve the API from the packages in `code`, where nothing else of the product is in reach; yield its URL."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
    environment |= {"PYTHONPATH": str(code), "NIGHTMILL_DATA_DIR": str(folder / "data"), "NIGHTMILL_PORT": str(port)}
    release = [sys.executable, "-m", "jobs.bootstrap"]
    subprocess.run(release, cwd=folder, env=environment, timeout=300, capture_output=True, check=True)
    with (folder / "web.log").open("wb") as log:
        web = subprocess.Popen([sys.executable, "-m", "api"], cwd=folder, env=environment, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: web.poll() is not None or _answers(url), 60, "the API answers")
        assert web.poll() is None, (folder / "web.log").read_text()
        yield url
    finally:
        web.terminate()
        web.wait(60)


def _answers(url: str) -> bool:
    try:
        return bool(httpx2.get(f"{url}/livez", timeout=2).is_success)
    except httpx2.HTTPError:
        return False
