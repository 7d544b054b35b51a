"""The instructions of `deploy/Dockerfile`, and a build of its stages in a folder, without a container engine."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from string import Template
from typing import Final

from tests.support.system import ROOT

DOCKERFILE: Final = (ROOT / "deploy" / "Dockerfile").read_text()
#: Patterns of what the build is not given of the checkout.
_IGNORED: Final = re.findall(r"^[^#!*\n].*|^\*\*/.*", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
#: The folders of the image that the stages write to.
_ABSOLUTE: Final = re.compile(r"(?<![\w.}/])/(?=(?:src|opt|var|wheel)\b)")
#: Runs a command of a stage; uv is told what pip is told about indexes and wheel folders.
_RUN: Final = 'pip=(python -m pip); . "$1/.ci/registries"; eval "$2"'


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, with the lines of each joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in whole.splitlines() if line.strip())
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage."""
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for name, rest in instructions():
        if name == "FROM":
            current = stages.setdefault(rest.split()[-1], [])
        current.append((name, rest))
    return stages


class StageBuild:
    """The instructions of stages, one after the other, over a folder that stands for the root of the image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root
        subprocess.run([sys.executable, "-m", "venv", root / "python"], check=True, timeout=120)
        names = ("NIGHTMILL_", "PYTHON", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        self.environment["PATH"] = f"{root / 'python' / 'bin'}:/usr/local/bin:/usr/bin:/bin"

    def execute(self, stage: str, **earlier: "StageBuild") -> None:
        """Execute the instructions of a stage. `earlier` are the stages that it copies from.

        Raises:
            AssertionError: A command fails.
        """
        actions = {"ARG": self._arg, "ENV": self._env, "WORKDIR": self._workdir, "RUN": self._run}
        for name, rest in stages()[stage]:
            if name == "COPY":
                self._copy(rest.split(), earlier)
            elif name != "FROM":
                actions[name](rest)

    def _arg(self, rest: str) -> None:
        name, is_set, value = rest.partition("=")
        if is_set:
            self.environment.setdefault(name, value)

    def _env(self, rest: str) -> None:
        for word in shlex.split(self._inside(rest)):
            name, _, value = word.partition("=")
            self.environment[name] = Template(value).substitute(self.environment)

    def _workdir(self, rest: str) -> None:
        self.folder = Path(self._inside(rest))
        self.folder.mkdir(parents=True, exist_ok=True)

    def _run(self, rest: str) -> None:
        command = re.sub(r"--mount=\S+ *", "", self._inside(rest))
        words = ["bash", "-ec", _RUN, "stage", ROOT, command]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def _inside(self, text: str) -> str:
        return _ABSOLUTE.sub(f"{self.root}/", text)

    def _copy(self, words: list[str], earlier: Mapping[str, "StageBuild"]) -> None:
        context = ROOT
        if words[0].startswith("--from="):
            context = earlier[words.pop(0).removeprefix("--from=")].root
        *sources, target = words
        for source in sources:
            path = context / source.lstrip("/")
            if path.is_dir():
                ignore = _ignored if context == ROOT else None
                shutil.copytree(path, self.folder / target, ignore=ignore, dirs_exist_ok=True)
            else:
                shutil.copy2(path, self.folder / target)


def _ignored(folder: str, names: Iterable[str]) -> set[str]:
    """Return the names in a folder of the checkout that .dockerignore leaves out."""
    inside = Path(folder).relative_to(ROOT)
    paths = {name: (inside / name).as_posix() for name in names}
    return {name for name, path in paths.items() if any(fnmatch(path, pattern) for pattern in _IGNORED)}
