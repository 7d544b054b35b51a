"""A deployment without a terminal: started by `nightmill up --detach`, stopped by `nightmill down`.

up --detach ──fork──▶ the guard, a session of its own, standard error in logs/up.err ──▶ supervisor, services
     └── waits until the API takes requests, or shows why the guard ended
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from cli.errors import CliError
from cli.terminal import say
from cli.up import readiness
from cli.up.folder import DataFolder
from cli.up.service import LogFile
from jobs.platform import processes
from jobs.timings import Timings

_INTERRUPTED: Final = 130
_SHOWN: Final = 30  # lines of a failed start's errors


def run_detached(folder: DataFolder, api: str, run: Callable[[], int], timings: Timings = Timings()) -> int:
    """Call `run` in a process in the background; return 0 here when `api` takes requests.

    Return 130 after Ctrl-C, which leaves the process running. In the new process, return the exit code of `run`.
    Call this function while this process has one thread.

    Raises:
        CliError: a deployment runs in this folder already, the new one ended, or it does not answer in time.
    """
    folder.refuse_if_running()
    errors = folder.logs / "up.err"
    errors.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _leave_terminal(errors)
        return run()
    try:
        _wait_until_ready(folder, child, api, LogFile(errors), timings)
    except KeyboardInterrupt:
        say("it goes on in the background: `nightmill status` shows it, `nightmill down` stops it", err=True)
        return _INTERRUPTED
    say(f"API key: in {folder.run_file}")
    say("`nightmill status` shows it, `nightmill logs -f` what it logs, and `nightmill down` stops it")
    return 0


def _leave_terminal(errors: "os.PathLike[str]") -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    written = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, descriptor in enumerate((nothing, nothing, written)):
        os.dup2(descriptor, number)
    os.close(nothing)
    os.close(written)


def _wait_until_ready(folder: DataFolder, child: int, api: str, errors: LogFile, timings: Timings) -> None:
    """Wait until the deployment of the process `child` takes requests. Raises CliError as `run_detached` does."""
    deadline = time.monotonic() + timings.detach_patience
    while not (run := _run_of(folder, child)) or not readiness.takes_requests(api):
        if os.waitpid(child, os.WNOHANG)[0]:
            raise CliError(f"the start failed:\n{errors.tail(_SHOWN).replace('nightmill: ', '', 1)}")
        if time.monotonic() > deadline:
            raise CliError(f"no answer yet; it goes on starting, and {folder.logs} has what its processes log")
        threading.Event().wait(timings.detach_look)
    say(f"ready: {run['url']}/v1")
    say(folder.browser_line(run["url"], readiness.console_path(api), linked=sys.stdout.isatty()))


def _run_of(folder: DataFolder, pid: int) -> dict[str, Any]:
    """Return `run.json` once the process `pid` has written it, after it took its ports and ran the release step."""
    run = folder.live_run()
    return run if run.get("pid") == pid else {}


def stop(folder: DataFolder, timings: Timings = Timings()) -> bool:
    """Stop what runs in `folder`, as Ctrl-C does, and wait for its end; return False if nothing ran.

    Raises:
        CliError: the deployment runs on another host, or does not end.
    """
    owner = folder.owner()
    if owner is None or not (owner.lives or folder.live_run()):
        return False
    if not owner.lives:
        raise CliError(f"{folder.path} belongs to `nightmill up` on host {owner.host}: stop it there")
    patience = folder.read_run().get("stop_seconds", 0.0) + timings.down_patience
    try:
        process = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return False
    try:
        if not processes.alive(owner.pid, owner.started):  # another process got the pid before it was opened
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], patience)[0]:
            raise CliError(f"pid {owner.pid} does not end; {folder.logs / 'up.log'} says what it waits for")
    finally:
        os.close(process)
    return True
