"""The trainer's process as the worker holds it: start it, read its reports, give it orders, kill it.

The process belongs to the thread that starts it: the kernel ends it with that thread. It has a session of its own.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from workers.engines.training.protocol import CHECKPOINT_AND_STOP, Report, Spec, decode_report

_READ: Final = 1 << 16
_MODULE: Final = "workers.engines.training"
_LOG_LINES: Final = 20
#: For the libraries: no progress bars in our log, no chatter; a tokenizer's threads would be lost in a fork.
_QUIET: Final = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
#: Threads that wait for each other sleep: beside an engine on the same processor, waiting ones took the time of those
#: that compute.
_SHARING: Final = {"OMP_WAIT_POLICY": "PASSIVE"}


class TrainerDied(Exception):
    """The trainer ended without a report of its end. The message holds the last lines of its log.

    A trainer that `was_killed` was killed by somebody else: usually by the kernel of a machine without free memory.
    """

    def __init__(self, status: int, lines: Sequence[str]) -> None:
        super().__init__("\n".join([f"The trainer ended with status {status}.", *lines]))
        self.was_killed = status == -signal.SIGKILL


class TrainerProcess:
    """A trainer that runs a spec. Its files lie in `folder`."""

    def __init__(self, spec: Spec, folder: Path, module: str = _MODULE) -> None:
        file, self._log = folder / "spec.json", folder / "trainer.log"
        file.write_bytes(msgspec.json.encode(spec))
        self._reports, reports_end = os.pipe()
        orders_end, self._orders = os.pipe()
        arguments = [str(file), str(reports_end), str(orders_end), str(os.getpid())]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-m", module, *arguments],
                env=_SHARING | os.environ | _QUIET | {"OMP_NUM_THREADS": str(spec.threads)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reports_end, orders_end),
                start_new_session=True,
            )
        os.close(reports_end)
        os.close(orders_end)
        self._rest = b""
        self._ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def reports(self, seconds: float) -> list[Report]:
        """Return the reports of the next moment, of which there may be none. Raises TrainerDied after the last one."""
        poll = select.poll()
        poll.register(self._reports, select.POLLIN)
        deadline = time.monotonic() + seconds
        while True:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return []
            data = os.read(self._reports, _READ)
            if not data:
                raise TrainerDied(self._process.wait(), self._last_log_lines())
            *lines, self._rest = (self._rest + data).split(b"\n")
            if lines:
                return [decode_report(line) for line in lines]

    def checkpoint_and_stop(self) -> None:
        """Have the trainer make a checkpoint at the end of its step, and end."""
        with suppress(BrokenPipeError):  # it has ended already
            os.write(self._orders, CHECKPOINT_AND_STOP)

    def close(self) -> None:
        """Kill the trainer and its session if it lives, and wait until it is gone."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not self._ended:
            self._ended = True
            os.close(self._reports)
            os.close(self._orders)

    def _last_log_lines(self) -> Sequence[str]:
        return self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
