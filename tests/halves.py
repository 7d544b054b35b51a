"""`python -m tests.halves`: all tests, in two pytest processes at once, since a test of a system mostly waits.

Tests of systems (deployments, engines, SDKs) are shown as they go, those of units after them. With arguments, which are
pytest's, it is one process.
"""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

SYSTEMS = ("tests/acceptance", "tests/contract", "tests/integration", "tests/sdk")
_PYTEST = (sys.executable, "-m", "pytest", "-m", "not chaos")
_LOOK_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    if arguments:
        return subprocess.run([*_PYTEST, *arguments], check=False).returncode
    others = [f"--ignore={folder}" for folder in SYSTEMS]
    with tempfile.NamedTemporaryFile("w+") as log:
        print(f"Two halves at once: {' '.join(SYSTEMS)}, shown as they go; all others, shown at the end.", flush=True)
        units = subprocess.Popen([*_PYTEST, *others], stdout=log, stderr=subprocess.STDOUT)
        try:
            systems = subprocess.run([*_PYTEST, *SYSTEMS], check=False).returncode
            with open(log.name) as text:  # noqa: PTH123 (it has a name, and no path object)
                _follow(units, text)
        finally:
            units.terminate()
            units.wait()
    for what, code in (("systems", systems), ("all others", units.returncode)):
        print(f"{what}: {'passed' if code == 0 else f'FAILED (exit status {code})'}", flush=True)
    return systems or units.returncode


def _follow(process: "subprocess.Popen[bytes]", text: IO[str]) -> None:
    """Show what it has said, and what it says until its end."""
    ended = False
    while not ended:
        ended = process.poll() is not None
        sys.stdout.write(text.read())
        sys.stdout.flush()
        if not ended:
            threading.Event().wait(_LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
