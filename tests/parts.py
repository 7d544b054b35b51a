"""`python -m tests.parts`: all tests, in two pytest processes at once, since a test of a system mostly waits.

The first part is shown as it goes, the other after it. With arguments, which are pytest's, it is one process.
"""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

_SYSTEMS = ("tests/acceptance", "tests/contract", "tests/integration", "tests/sdk")
#: What takes about as long each. Three would be done sooner on two cores, were it not for tests that wait for seconds.
PARTS = {"systems": _SYSTEMS, "all others": tuple(f"--ignore={folder}" for folder in _SYSTEMS)}
_PYTEST = (sys.executable, "-m", "pytest", "-m", "not chaos")
_LOOK_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    if arguments:
        return subprocess.run([*_PYTEST, *arguments], check=False).returncode
    print(f"At once, shown one after the other: {', '.join(PARTS)}.", flush=True)
    with ExitStack() as stack:
        parts = {what: stack.enter_context(_started(chosen)) for what, chosen in PARTS.items()}
        codes = {}
        for what, part in parts.items():
            print(f"\n{what}:", flush=True)
            codes[what] = part.follow()
    for what, code in codes.items():
        print(f"{what}: {'passed' if code == 0 else f'FAILED (exit status {code})'}", flush=True)
    return next((code for code in codes.values() if code), 0)


@dataclass(frozen=True, slots=True)
class _Part:
    process: "subprocess.Popen[bytes]"
    text: IO[bytes]

    def follow(self) -> int:
        """Show what it has said, and what it says until its end."""
        ended = False
        while not ended:
            ended = self.process.poll() is not None
            sys.stdout.buffer.write(self.text.read())
            sys.stdout.flush()
            if not ended:
                threading.Event().wait(_LOOK_SECONDS)
        return self.process.returncode


@contextmanager
def _started(chosen: Sequence[str]) -> Iterator[_Part]:
    with tempfile.NamedTemporaryFile("wb") as log, open(log.name, "rb") as text:  # noqa: PTH123 (a name, and no path object)
        process = subprocess.Popen([*_PYTEST, *chosen], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield _Part(process, text)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
