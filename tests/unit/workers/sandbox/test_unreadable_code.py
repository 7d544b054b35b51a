"""Start confined processes from a copy of the code that not every user can read."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from workers.sandbox import confinement
from workers.sandbox.child import environment

ROOT = Path(__file__).parents[4]
OWNER = 1000
CHILDREN = ("workers.retrieval.parsing.parser_child", "workers.middleware.schema_checker_child")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes from another user's files")

BEGIN = """
import json, sys
from workers.sandbox.confinement import Policy
from workers.sandbox.child import Child
child = Child(Policy(sys.argv[1]))
print(json.dumps(child.begin()))
child.end()
"""
BECOME = """
import json, os, sys
from workers.sandbox import confinement
became = confinement._own_user([sys.argv[1] + "/jobs", sys.argv[1] + "/workers"], None)
print(json.dumps([became, os.getresuid(), os.getresgid(), os.getgroups()]))
"""


@pytest.fixture
def checkout() -> Iterator[Path]:
    """Copy the code into a folder that every user can reach."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = Path(folder) / "alice"
        for package in ("jobs", "workers"):
            shutil.copytree(ROOT / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
        yield made


def give_away(checkout: Path) -> None:
    """Make the checkout a user's own, as a home folder is."""
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, OWNER, OWNER)
    checkout.chmod(0o750)


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = [str(checkout), *(entry for entry in sys.path if entry and not (Path(entry) / "workers").is_dir())]
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environment() | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@as_root
@pytest.mark.parametrize("module", CHILDREN)
def test_root_starts_a_child_from_a_checkout_that_only_another_user_can_read(checkout: Path, module: str) -> None:
    give_away(checkout)

    begun = run(checkout, "-c", BEGIN, module)

    assert begun.returncode == 0, begun.stderr
    missing = json.loads(begun.stdout)
    assert ("landlock" in missing) is (confinement.landlock_abi() == 0)
    assert ("capabilities" in missing) <= ("own_user" in missing)


@as_root
def test_root_runs_python_graders_from_a_checkout_that_only_another_user_can_read(checkout: Path) -> None:
    give_away(checkout)
    checkout.chmod(0o700)

    probed = run(checkout, "-m", "workers.sandbox", "forks")

    assert (probed.returncode, probed.stdout) == (0, ""), probed.stderr


@as_root
def test_root_becomes_owner_of_code_unreadable_to_others(checkout: Path) -> None:
    give_away(checkout)

    became = run(checkout, "-c", BECOME, str(checkout))

    assert json.loads(became.stdout) == [True, [OWNER] * 3, [OWNER] * 3, []], became.stderr


@as_root
@pytest.mark.parametrize("module", CHILDREN)
def test_root_retains_capability_needed_to_read_code(checkout: Path, module: str) -> None:
    give_away(checkout)
    os.chown(checkout, OWNER + 1, OWNER + 1)
    checkout.chmod(0o700)

    begun = run(checkout, "-c", BEGIN, module)

    assert begun.returncode == 0, begun.stderr
    missing = json.loads(begun.stdout)
    assert {"own_user", "user_namespace", "capabilities"} <= {*missing}
    assert ("landlock" in missing) is (confinement.landlock_abi() == 0)
    assert "seccomp" not in missing


@pytest.mark.parametrize("module", CHILDREN)
def test_the_probe_fails_where_the_confined_process_cannot_read_a_child_module(checkout: Path, module: str) -> None:
    before = run(checkout, "-m", "workers.sandbox")
    (checkout / module.replace(".", "/")).with_suffix(".py").chmod(0)

    after = run(checkout, "-m", "workers.sandbox")

    assert before.returncode == 0, before.stderr
    assert after.returncode != 0
