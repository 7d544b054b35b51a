"""The sign of life of a process, for the health check of its container: a file that it touches while it works.

    TMPDIR/nightmill-UID/ROLE    a worker touches it with each heartbeat that SQL has taken;
                                 a dispatcher after each tick, or each second while another one leads

ROLE is the pool of a worker, or `dispatcher`. A check compares the age of the file, which takes a millisecond:

    test -n "$(find /tmp/nightmill-10001/cpu -newermt '-30 seconds')"
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

DISPATCHER: Final = "dispatcher"


def sign_file(role: str) -> Path:
    """Return the file that processes of a role touch on this host. Those of one user share it."""
    return Path(tempfile.gettempdir()) / f"nightmill-{os.getuid()}" / role


def give_sign(role: str) -> None:
    """Touch the file of a role. A folder that takes no files (a full disk) is no reason to end the process."""
    file = sign_file(role)
    with suppress(OSError):
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.touch()
