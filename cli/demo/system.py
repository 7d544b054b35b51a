"""Run `nightmill up` for the demo as a child process, in a folder that stays, so that the next start is faster.

The child ends with the demo in every case: the kernel kills its guard, and the supervisor then kills the rest.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cli.errors import CliError
from cli.up import readiness
from cli.up.folder import DataFolder
from cli.up.procfile import CODE
from cli.up.service import LogFile, Program, Service
from jobs.platform.secret_files import replace_values

_READY_SECONDS = 180.0
_STOP_SECONDS = 60.0
_HOPELESS = 3  # restarts of one process that count as hopeless
_READ, _SHOWN = 200, 8  # lines of a log

#: Settings that name services which other deployments share. This installation uses its own: its workers must not take
#: the others' work. An empty value stands for its own service.
_SHARED: Final = (
    "NIGHTMILL_PUBLIC_URL", "NIGHTMILL_DATABASE_URL", "NIGHTMILL_BROKER_URL", "NIGHTMILL_STREAMS_URL",
    "NIGHTMILL_STORAGE_URL", "NIGHTMILL_VECTORS_URL", "NIGHTMILL_VECTORS_API_KEY",
    "NIGHTMILL_MLFLOW_URL", "NIGHTMILL_WANDB_URL", "NIGHTMILL_OPENLINEAGE_URL", "NIGHTMILL_FLOWER_PUBLIC_URL",
)  # fmt: skip


class System:
    """A running installation."""

    def __init__(self, folder: DataFolder, service: Service) -> None:
        self.folder = folder
        self._service = service
        self._ended: int | None = None

    @property
    def url(self) -> str:
        return str(self.folder.read_run()["url"])

    @property
    def flower_url(self) -> str:
        return str(self.folder.read_run()["flower_url"])

    @property
    def api_key(self) -> str:
        return str(self.folder.read_run()["api_key"])

    def wait_until_ready(self) -> None:
        """Wait until the API answers. Raises CliError when it does not in time."""
        deadline = time.monotonic() + _READY_SECONDS
        while not (self.folder.read_run() and readiness.takes_requests(self.url)):
            self.check()
            if time.monotonic() > deadline:
                raise CliError(f"the API does not answer; its log says\n{self._tail('web')}")
            threading.Event().wait(0.2)

    def check(self) -> None:
        """Raise CliError when the installation has ended, or when one of its processes keeps ending."""
        if self._has_ended():
            raise CliError(f"nightmill up has ended:\n{self._service.log.tail(8)}")
        for process in self.folder.read_run().get("processes", []):
            if process["restarts"] >= _HOPELESS:
                raise CliError(
                    f"the process '{process['name']}' keeps ending; its log says\n{self._tail(process['name'])}"
                )

    def stop(self) -> None:
        """Stop the installation as Ctrl-C does; kill it after a minute."""
        self._service.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        while not self._has_ended() and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        if not self._has_ended():
            self._service.stop(signal.SIGKILL)
            os.waitpid(self._service.pid, 0)

    def _tail(self, name: str) -> str:
        """Return the last error of a process's log, else its last lines."""
        lines = LogFile(self.folder.logs / f"{name}.log").tail(_READ).splitlines()
        errors = [error for line in lines if (error := _error_of(line))]
        return errors[-1] if errors else "\n".join(lines[-_SHOWN:])

    def _has_ended(self) -> bool:
        if self._ended is None:
            pid, status = os.waitpid(self._service.pid, os.WNOHANG)
            self._ended = os.waitstatus_to_exitcode(status) if pid else None
        return self._ended is not None


def _error_of(line: str) -> str:
    """Return the exception in a line of a log without its traceback; empty where it has none."""
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    error = record.get("error") if isinstance(record, dict) else None
    return (
        f"{record.get('event')}: {error.strip().splitlines()[-1]}" if isinstance(error, str) and error.strip() else ""
    )


@contextmanager
def running(path: Path, options: Sequence[str], environment: Mapping[str, str], port: int = 0) -> Iterator[System]:
    """Yield an installation in `path` that shares nothing but what `environment` names; stop it afterwards."""
    folder = DataFolder(path)
    folder.make()
    command = (sys.executable, "-m", "cli", "up", "--data-dir", str(folder.path), "--port", str(port), *options)
    own = replace_values(os.environ, {**dict.fromkeys(_SHARED, ""), **environment})
    program = Program("up", command, own, CODE, folder.logs / "demo-up.log")
    program.log.unlink(missing_ok=True)  # the log of the last run
    service = Service(program)
    service.start()
    system = System(folder, service)
    try:
        yield system
    finally:
        system.stop()
