"""The stages of the image that make its wheel, executed in a folder: what their commands need is copied to them."""

import zipfile
from pathlib import Path

import pytest

from tests.support.console import build_console
from tests.support.dockerfile import StageBuild

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

BUILT = "api/pages/console"


def test_wheel_of_the_image_contains_the_console(tmp_path: Path) -> None:
    build_console()  # skips where npm is out of reach
    console, wheel = StageBuild(tmp_path / "console"), StageBuild(tmp_path / "wheel")
    console.execute("build")
    console.execute("console")
    wheel.execute("build")
    wheel.execute("wheel", console=console)

    built = console.root / "src" / BUILT
    made = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    [path] = (wheel.root / "wheel").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    assert {"index.html", "index.html.br", "index.html.gz"} < made
    assert {name.removeprefix(f"{BUILT}/") for name in names if name.startswith(f"{BUILT}/")} == made
    assert {"api/app.py", "jobs/ledger/kinds.py", "workers/app.py", "cli/up/Procfile", "migrations/env.py"} <= names
    assert [name for name in names if "node_modules" in name] == []
