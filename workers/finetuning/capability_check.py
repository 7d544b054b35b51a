"""What this worker can train, found by a child process and told with each heartbeat: the API refuses what it cannot.

The child loads torch, which this process does not. That takes half a minute of a core: it begins a while after the
start, with the lowest priority, and delays no job.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Final

from workers.runtime.context import Context

log = logging.getLogger(__name__)
_MODULE: Final = "workers.engines.training.capabilities"
_SECONDS: Final = 600


def examine(context: Context) -> threading.Thread:
    """Start to find out what this worker can train; its heartbeats tell it from then on."""
    thread = threading.Thread(target=_examine, args=(context,), name="capabilities", daemon=True)
    thread.start()
    return thread


def _examine(context: Context) -> None:
    if context.stop.wait(context.timings.capability_check):
        return
    command = [sys.executable, "-m", _MODULE, str(os.getpid())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True)  # noqa: S603 (our own module)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        lines = (error.stderr or b"").decode(errors="replace").splitlines()
        log.warning("capabilities_unknown", extra={"reason": str(error), "lines": lines[-3:]})
        return
    context.standing.training = json.loads(done.stdout)
    log.info("capabilities", extra={"training": context.standing.training})
