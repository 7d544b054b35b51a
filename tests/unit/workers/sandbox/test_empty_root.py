"""What code sees of the host whose root is empty, from an installation below /tmp, as root and as an ordinary user."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from tests.unit.workers.evals.escapes import BY_LANDLOCK, ESCAPES, Scene, body, is_refused, source_of

CHECKOUT = Path(__file__).parents[4]
PROGRAM = Path(__file__).with_name("grading.py").read_text()
PACKAGES = ("msgspec", "msgspec-*.dist-info", "numpy", "numpy.libs", "numpy-*.dist-info")
ORDINARY = 1000
#: Fill memory for seconds; where the files are changes nothing for them.
SLOW = ("fill its disk", "make files without end", "take more memory than it may")
#: Says what there is beside what the sandbox gives, the folders above that, and links.
LOOK_AROUND = body("""
from workers.sandbox import confinement
given = {os.path.realpath(path) for path in (*confinement._readable(), '/dev/null', '/tmp')}
strange, seen = [], 0
for folder, folders, files in os.walk('/'):
    for path in [os.path.join(folder, name) for name in folders + files]:
        seen += 1
        if not os.path.islink(path) and not any(f'{real}/'.startswith(f'{path}/') for real in given):
            strange.append(path)
    folders[:] = [name for name in folders if os.path.join(folder, name) not in given]
raise ValueError(f'{seen > 10} {strange}')
""")


@dataclass(frozen=True)
class Installation:
    """A Python, a virtual environment and a checkout, all below /tmp and nothing of them anywhere else."""

    folder: Path

    def outcomes(self, *sources: str, user: int, landlock: bool = True) -> list[str]:
        """Return what came of sources that were run in the sandbox by `user`."""
        facts = json.dumps({"sources": sources, "landlock": landlock})
        ran = subprocess.run(
            [self.folder / "venv/bin/python", "-P", "-c", PROGRAM, facts], env={}, cwd=self.folder, user=user,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        missing, outcomes = json.loads(ran.stdout)
        assert missing == []
        return list(outcomes)


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    """Link or copy what runs here: the code is reached by a symbolic link that a .pth file names."""
    with TemporaryDirectory(dir="/tmp") as name:
        folder, version = Path(name), Path(sysconfig.get_path("stdlib")).name
        folder.chmod(0o755)
        (folder / "python/bin").mkdir(parents=True)
        shutil.copy(Path(sys.executable).resolve(), folder / "python/bin/python3")
        _link(Path(sysconfig.get_path("stdlib")), folder / "python/lib" / version)
        installed = folder / "venv/lib" / version / "site-packages"
        for path in (path for name in PACKAGES for path in Path(msgspec.__file__).parents[1].glob(name)):
            _link(path, installed / path.name)
        for package in ("jobs", "workers"):
            _link(CHECKOUT / package, folder / "checkouts/first" / package)
        (folder / "current").symlink_to("checkouts/first")
        (installed / "code.pth").write_text(f"{folder}/current\n")
        (folder / "venv/pyvenv.cfg").write_text(f"home = {folder}/python/bin\n")
        (folder / "venv/bin").mkdir()
        (folder / "venv/bin/python").symlink_to(folder / "python/bin/python3")
        yield Installation(folder)


def _link(source: Path, target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib")
    shutil.copytree(source, target, symlinks=True, ignore=ignored, copy_function=_link_file)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # of another file system, or of another user
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.close()


USERS = {"this user": os.geteuid(), "an ordinary user": ORDINARY} if os.geteuid() == 0 else {"this user": os.geteuid()}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86_64")
@pytest.mark.parametrize("landlock", [True, False], ids=["with Landlock", "without Landlock"])
@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_escapes_are_refused_from_an_installation_below_tmp(
    installation: Installation, scene: Scene, user: int, landlock: bool
) -> None:
    names = [name for name in ESCAPES if name not in (*SLOW, *BY_LANDLOCK)]
    outcomes = installation.outcomes(*(source_of(name, scene.facts) for name in names), user=user, landlock=landlock)

    assert {name: error for name, error in zip(names, outcomes, strict=True) if not is_refused(name, error)} == {}
    assert scene.victim.poll() is None
    assert scene.key.read_text() == "secret"


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_nothing_else_of_the_host_is_there(installation: Installation, user: int) -> None:
    assert installation.outcomes(LOOK_AROUND, user=user, landlock=False) == ["ValueError: True []"]


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_tmp_is_empty_but_for_the_installation_and_its_own(installation: Installation, user: int) -> None:
    write = body("open('/tmp/file', 'w').write('x')\nraise ValueError(sorted(os.listdir('/tmp')))")
    list_again = body("import jobs.timings\nraise ValueError(os.listdir('/tmp'))")
    name = installation.folder.name

    assert installation.outcomes(write, list_again, user=user, landlock=False) == [
        f"ValueError: {sorted((name, 'file'))}", f"ValueError: {[name]}",
    ]  # fmt: skip
