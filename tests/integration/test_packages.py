"""The wheel and the sdist contain the built console; an installed API serves it."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import httpx2
import pytest

from tests.support.console import build_console
from tests.support.packages import serving, uv
from tests.support.system import ROOT

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

BUILT = "api/pages/console/"
SCRIPT = re.compile(r'src="/(console/assets/[\w.-]+\.js)"')


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist of the checkout, and the wheel that was built from that sdist."""
    build_console()
    folder = tmp_path_factory.mktemp("packages")
    built = uv("build", "--out-dir", folder)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


def console_of_checkout() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / BUILT).rglob("*") if path.is_file()}


def test_wheel_contains_the_console_and_nothing_of_its_making(packages: Path) -> None:
    [wheel] = packages.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    console = {name for name in names if name.startswith(BUILT)}

    assert console == console_of_checkout()
    assert {f"{BUILT}index.html", f"{BUILT}index.html.br"} <= console
    assert [name for name in console if name.endswith(".js") and f"{name}.br" not in console] == []
    assert [name for name in names if re.search(r"node_modules|\.map$|\.tsx?$|^tests/|^console/", name)] == []


def test_sdist_contains_the_console_and_its_sources(packages: Path) -> None:
    [sdist] = packages.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert console_of_checkout() <= names
    assert {"console/package-lock.json", "console/src/main.tsx", ".ci/console", "Makefile", "LICENSE"} <= names
    assert [name for name in names if re.search(r"node_modules|schema\.d\.ts|openapi\.json", name)] == []


def test_api_of_an_installed_wheel_serves_the_console(packages: Path, tmp_path: Path) -> None:
    [wheel] = packages.glob("*.whl")
    target = tmp_path / "installed"
    installed = uv("pip", "install", "--python", sys.executable, "--no-deps", "--target", target, wheel)
    assert installed.returncode == 0, installed.stderr

    with serving(target, tmp_path) as url:
        page = httpx2.get(f"{url}/console/")
        [script] = SCRIPT.findall(page.text)
        with httpx2.stream("GET", f"{url}/{script}", headers={"Accept-Encoding": "br"}) as answer:
            content = b"".join(answer.iter_raw())

    assert (page.status_code, page.text) == (200, (target / BUILT / "index.html").read_text())
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (answer.status_code, answer.headers["content-encoding"]) == (200, "br")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert content == (target / "api" / "pages" / f"{script}.br").read_bytes()


def test_checkout_without_a_console_installs_and_says_so(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.rstrip("\0").split("\0"):
        if name.split("/")[0] in {"api", "jobs", "workers", "cli", "migrations"} or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    installed = uv("pip", "install", "--python", sys.executable, "--no-deps", "--target", target, source)
    assert installed.returncode == 0, installed.stderr

    doctor = subprocess.run(
        [sys.executable, "-m", "cli", "doctor", "--json", "--data-dir", tmp_path / "data"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    with serving(target, tmp_path) as url:
        page = httpx2.get(f"{url}/console/")

    [line] = [line for line in doctor.stdout.splitlines() if '"check": "console"' in line]
    assert "not built" in line
    assert "`make console`" in line
    assert page.status_code == 503
    assert "make console" in page.text
